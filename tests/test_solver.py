"""Equal budgets: every method meets the same target, or says which one it could."""

from __future__ import annotations

import json

import pytest

from harness.cost import solver
from harness.errors import ConfigError
from tests import tiny

DEEP = {"num_hidden_layers": 32, "num_key_value_heads": 4}


@pytest.fixture
def request_for(tmp_path):
    """A config of a 32-layer LLaVA with 576 visual tokens; small widths change no share of note."""
    vision = {**tiny.vision_config(), "image_size": 96, "hidden_size": 16, "intermediate_size": 16}
    config = {"model_type": "llava", "image_token_index": 3, "vision_config": vision,
              "text_config": tiny.text_config(**DEEP)}  # fmt: skip
    file = tmp_path / "deep.json"
    file.write_text(json.dumps({"config": config}))

    def make(method: str, options: dict | None = None, **budget):
        return {
            "model": {"name": "deep", "architecture": str(file)},
            "method": {"name": method, **(options or {})},
            "ratio": None, "seed": 0, "image_size": "96x96", "text_tokens": 40,
            "paths": {"results": str(tmp_path)},
            "budget": {"convention": "flops", **budget},
        }  # fmt: skip

    return make


METHODS = ("gprune", "random", "tome", "fastv", "seqprune", "fitprune", "pyramiddrop")


@pytest.mark.parametrize("convention", ["flops", "paper_gprune", "sparsevlm"])
@pytest.mark.parametrize("method", METHODS)
def test_all_methods_meet_one_target_within_one_percent(request_for, method, convention):
    config, notes = request_for(method, flops=0.6, convention=convention), []
    ratio = solver.resolve(config, notes)["ratio"]
    cost = solver._costs(config, solver.budget_of(config))
    assert cost(ratio) == pytest.approx(0.6, rel=solver.TOLERANCE)
    assert f"ratio={ratio:g}" in notes[0] and convention in notes[0]


@pytest.mark.parametrize("method", METHODS)
def test_mean_tokens_are_met_whatever_a_method_does_inside(request_for, method):
    config = request_for(method, mean_tokens=288)
    ratio = solver.resolve(config, [])["ratio"]
    assert ratio == pytest.approx(0.5, abs=0.01)


def test_an_infeasible_target_names_the_nearest_feasible_one(request_for):
    with pytest.raises(ConfigError, match=r"infeasible; the nearest feasible target is") as caught:
        solver.resolve(request_for("fastv", mean_tokens=20), [])
    # K = 2 of 32 layers see all 576 tokens, and one token stays at least in the others.
    nearest = float(str(caught.value).partition("mean_tokens=20 is")[2].split("=")[1].split()[0])
    assert nearest == pytest.approx(576 * 2 / 32, abs=1.5)
    solver.resolve(request_for("fastv", mean_tokens=nearest), [])


def test_knobs_given_by_the_user_stay(request_for):
    with pytest.raises(ConfigError, match="infeasible"):
        solver.resolve(request_for("fastv", {"K": 16}, mean_tokens=200), [])


def test_latency_needs_a_timing_and_follows_from_it(request_for, tmp_path):
    config = request_for("gprune", latency=0.7)
    with pytest.raises(ConfigError, match="task=time"):
        solver.resolve(config, [])
    seconds = {"setup": 0.05, "vision": 0.15, "prefill": 1.0}
    stored = {
        "identity": {"images": ["96x96"], "text_tokens": 40},
        "batches": [
            {"batch_size": 1,
             "baseline": {"seconds": {k: {"median": v} for k, v in seconds.items()}}}
        ],
    }  # fmt: skip
    folder = tmp_path / "runs" / "timing" / "deep" / "none-0-0"
    folder.mkdir(parents=True)
    (folder / "timing.json").write_text(json.dumps(stored))
    ratio = solver.resolve(config, [])["ratio"]
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
    config = {**request_for(method, **budget), "ratio": ratio}
    with pytest.raises(ConfigError, match=message):
        solver.resolve(config, [])


def test_without_a_budget_nothing_changes(request_for):
    config = request_for("gprune")
    assert solver.resolve(config, []) is config


def test_a_cost_that_rises_in_places_is_still_solved():
    def cost(ratio: float) -> float:
        return 1 - ratio + (0.2 if 0.4 < ratio < 0.5 else 0)

    found = solver.solve(solver.Budget("flops", 0.62, "flops"), cost, "x")
    assert found.achieved == pytest.approx(0.62, rel=0.01)
