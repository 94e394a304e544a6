"""Equal budgets: every method meets the same target, or says which one it could."""

from __future__ import annotations

import json

import pytest

from tests import tiny
from vtprune import methods
from vtprune.harness.cost import solver
from vtprune.harness.request.errors import ConfigError
from vtprune.harness.request.request import Request

DEEP = {"num_hidden_layers": 32, "num_key_value_heads": 4}


@pytest.fixture
def request_for(tmp_path):
    """A 32-layer LLaVA with 576 visual tokens is asked for; small widths change no share."""
    vision = {**tiny.vision_config(), "image_size": 96, "hidden_size": 16, "intermediate_size": 16}
    config = {"model_type": "llava", "image_token_index": 3, "vision_config": vision,
              "text_config": tiny.text_config(**DEEP)}  # fmt: skip
    file = tmp_path / "deep.json"
    file.write_text(json.dumps({"config": config}), encoding="utf-8")

    def make(method: str, options: dict | None = None, **budget):
        return Request({
            "model": {"name": "deep", "architecture": str(file)},
            "method": {"name": method, **(options or {})},
            "ratio": None, "seed": 0, "image_size": "96x96", "text_tokens": 40,
            "paths": {"results": str(tmp_path)},
            "budget": {"convention": "flops", **budget},
        })  # fmt: skip

    return make


METHODS = ("gprune", "random", "tome", "fastv", "seqprune", "fitprune", "pyramiddrop")


@pytest.mark.parametrize("convention", ["flops", "paper_gprune", "sparsevlm"])
@pytest.mark.parametrize("method", METHODS)
def test_all_methods_meet_one_target_within_one_percent(request_for, method, convention):
    config, notes = request_for(method, flops=0.6, convention=convention), []
    ratio = solver.resolve(config, notes).ratio
    cost = solver._costs(config, solver.budget_of(config))
    assert cost(ratio) == pytest.approx(0.6, rel=solver.TOLERANCE)
    assert f"ratio={ratio:g}" in notes[0] and convention in notes[0]


@pytest.mark.parametrize("method", METHODS)
def test_mean_tokens_are_met_whatever_a_method_does_inside(request_for, method):
    config = request_for(method, mean_tokens=288)
    ratio = solver.resolve(config, []).ratio
    assert ratio == pytest.approx(0.5, abs=0.01)


def test_a_smaller_picture_meets_a_budget_where_its_whole_grids_do(request_for):
    solved = solver.resolve(request_for("downsample", mean_tokens=256), [])
    assert 256 / 576 <= 1 - solved.ratio < 289 / 576
    with pytest.raises(ConfigError, match="nearest feasible target is budget.mean_tokens=") as one:
        solver.resolve(request_for("downsample", mean_tokens=240), [])
    nearest = float(str(one.value).partition("=240 is")[2].split("=")[1].split()[0])
    assert nearest == 15 * 15  # crops of the tower are square


def test_an_infeasible_target_names_the_nearest_feasible_one(request_for):
    with pytest.raises(ConfigError, match=r"infeasible; the nearest feasible target is") as caught:
        solver.resolve(request_for("fastv", mean_tokens=5), [])
    # With K = 1 of 32 layers seeing all 576 tokens, and one token left in the others.
    nearest = float(str(caught.value).partition("mean_tokens=5 is")[2].split("=")[1].split()[0])
    assert nearest == pytest.approx(576 / 32, abs=1.5)
    solver.resolve(request_for("fastv", mean_tokens=nearest), [])


def test_a_methods_own_knobs_move_where_ratio_alone_cannot_meet_the_budget(request_for):
    notes: list[str] = []
    config = request_for("fastv", {"K": 2}, mean_tokens=27.7)  # K = 2 leaves 36 at least
    solved = solver.resolve(config, notes)
    assert solved.method.options["K"] == 1 and "K=1" in notes[0]
    cost = solver._costs(config, solver.budget_of(config))
    assert cost(solved.ratio, K=1) == pytest.approx(27.7, rel=solver.TOLERANCE)
    assert solved.budget.moved_from == {"K": 2}  # tables find the cell by what was asked


def test_the_nearest_knob_moves_first_and_as_few_as_possible(request_for):
    near = solver.resolve(request_for("seqprune", mean_tokens=80), [])  # step=0.1 reaches 129
    assert {k: near.method.options[k] for k in near.budget.moved_from or {}} == {"step": 0.2}
    far = solver.resolve(request_for("seqprune", mean_tokens=29.6), [])
    assert {k: far.method.options[k] for k in far.budget.moved_from or {}} == {"step": 0.5, "K": 1}
    enough = solver.resolve(request_for("seqprune", mean_tokens=200), [])
    assert enough.budget.moved_from is None


def test_only_the_ratio_moves_where_that_is_asked(request_for):
    with pytest.raises(ConfigError, match="infeasible"):
        solver.resolve(request_for("fastv", mean_tokens=27.7, knobs="ratio"), [])
    with pytest.raises(ConfigError, match="did you mean 'ratio'"):
        solver.resolve(request_for("fastv", mean_tokens=27.7, knobs="ratios"), [])


@pytest.mark.parametrize("name", [n for n in methods.available() if methods.get(n).knobs])
def test_every_value_of_a_knob_is_an_option_that_differs_from_the_default(name):
    default = methods.build(name)
    for knob, values in methods.get(name).knobs.items():
        for value in values:
            assert default.replace(**{knob: value}).options()[knob] != default.options()[knob]


def test_knobs_given_by_the_user_stay(request_for):
    with pytest.raises(ConfigError, match="infeasible"):
        solver.resolve(request_for("fastv", {"K": 16}, mean_tokens=200), [])


def test_a_stored_timing_of_the_model_predicts_latency(tmp_path):
    """The file the timing pass really writes, not one made up here."""
    from vtprune.harness.cost.timing import run

    text = {**tiny.text_config(), "num_hidden_layers": 8}
    config = {"model_type": "llava", "image_token_index": 3, "text_config": text,
              "vision_config": {**tiny.vision_config(), "image_size": 64}}  # fmt: skip
    file = tmp_path / "small.json"
    file.write_text(json.dumps({"config": config}), encoding="utf-8")
    asked = Request({
        "model": {"name": "small", "architecture": str(file), "weights": "random", "device": "cpu"},
        "method": {"name": "random"}, "ratio": 0.5, "seed": 0, "image_size": "64x64",
        "text_tokens": 8, "paths": {"results": str(tmp_path)},
        "timing": {"images": None, "repeats": 1, "warmup": 0, "new_tokens": 2, "batch_sizes": [1]},
    })  # fmt: skip
    stored = run.run_timing(asked)["batches"][0]["baseline"]["seconds"]
    seconds = {stage: stored[stage]["median"] for stage in ("setup", "vision", "prefill")}
    target = seconds["setup"] + seconds["vision"] + 0.6 * seconds["prefill"]
    config = asked.changed(ratio=None, budget={"latency": target, "convention": "flops"})
    solved = solver.resolve(config, [])
    cost = solver._costs(config, solver.budget_of(config))
    assert cost(solved.ratio) == pytest.approx(target, rel=solver.TOLERANCE)
    assert 0.2 < solved.ratio < 0.6


def test_latency_needs_a_timing_and_follows_from_it(request_for, tmp_path):
    config = request_for("gprune", latency=0.7)
    with pytest.raises(ConfigError, match="task=time"):
        solver.resolve(config, [])
    seconds = {"setup": 0.05, "vision": 0.15, "prefill": 1.0}
    stored = {
        "key": "0" * 64, "model": "deep", "method": "none", "ratio": 0.0, "provenance": {},
        "finished": "2026-01-01T00:00:00",
        "identity": {"images": ["96x96"], "text_tokens": 40},
        "batches": [
            {"batch_size": 1,
             "baseline": {"seconds": {k: {"median": v} for k, v in seconds.items()}}}
        ],
    }  # fmt: skip
    folder = tmp_path / "runs" / "timing" / "deep" / "none-0-0"
    folder.mkdir(parents=True)
    (folder / "timing.json").write_text(json.dumps(stored), encoding="utf-8")
    ratio = solver.resolve(config, []).ratio
    assert 0.3 < ratio < 0.5  # half of the prefill's work, much of which is quadratic here


@pytest.mark.parametrize(
    ("method", "ratio", "budget", "message"),
    [
        ("gprune", None, {"flops": 0.4, "mean_tokens": 9}, "give one budget"),
        ("gprune", 0.5, {"flops": 0.4}, "not both"),
        ("none", None, {"flops": 0.4}, "method=none"),
        ("gprune", None, {"flops": 1.4}, r"in \(0, 1\)"),
        ("gprune", None, {"mean_tokens": -3}, "> 0"),
        ("gprune", None, {"flops": 0.4, "convention": "flop"}, "did you mean 'flops'"),
    ],
)
def test_malformed_budgets_are_one_line(request_for, method, ratio, budget, message):
    config = request_for(method, **budget).changed(ratio=ratio)
    with pytest.raises(ConfigError, match=message):
        solver.resolve(config, [])


def test_without_a_budget_nothing_changes(request_for):
    config = request_for("gprune")
    assert solver.resolve(config, []) is config


def test_a_cost_that_rises_in_places_is_still_solved():
    def cost(ratio: float) -> float:
        return 1 - ratio + (0.2 if 0.4 < ratio < 0.5 else 0)

    found = solver.solve(solver.Budget("flops", 0.62, "flops"), cost, [{}], "x")
    assert found.achieved == pytest.approx(0.62, rel=0.01)
