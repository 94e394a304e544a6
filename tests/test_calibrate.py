"""FitPrune's calibration: statistics from the model, a stored recipe, and its use in a cell."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from tests import command_tools, tiny
from vtprune.harness.cell import recipes
from vtprune.harness.request.errors import ConfigError
from vtprune.harness.request.request import Request
from vtprune.models import prune
from vtprune.models.families import family_of
from vtprune.models.replay import start_replay

ROOT = Path(__file__).resolve().parent.parent


def one_prompt(family: str) -> dict[str, torch.Tensor]:
    return tiny.inputs(family, [tiny.prompt(family, 0)])


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl"])
def test_replayed_statistics_equal_materialised_attention(family):
    model, feed = tiny.model(family, "eager"), one_prompt(family)
    with torch.no_grad():
        attention = model(**feed, output_attentions=True).attentions
    visual = (feed["input_ids"][0] == tiny.IMAGE_TOKEN).nonzero().squeeze(1)
    after = torch.arange(int(visual[-1]) + 1, feed["input_ids"].shape[1])
    if family == "llava_next":
        assert len(visual) > 64
    replay = start_replay(family_of(tiny.model(family)), feed)
    for layer in attention:
        top = layer[0].amax(0)[:, visual]
        cross, own = replay.attend()
        assert torch.allclose(cross, top[after].mean(0), atol=1e-5)
        assert torch.allclose(own, top[visual].mean(0), atol=1e-5)


def test_a_replay_that_drops_equals_a_pruned_run():
    """Layer by layer by hand, against the runtime's own drop at the same layers."""
    model, feed = tiny.model("llava"), one_prompt("llava")
    recipe = (8, 0, 16, 0, 0, 0, 0, 0)
    with prune(
        model, "fitprune", ratio=0.3, ratio_mode="local", recipe=recipe, recipe_scaling="counts"
    ) as run, torch.no_grad():
        model(**feed, use_cache=True)
        record = run.take()[0]
    replay = start_replay(family_of(model), feed)
    alive = torch.arange(record.visual_tokens)
    for layer in range(4):
        assert record.alive(layer).nonzero().squeeze(1).tolist() == alive.tolist()
        cross, own = replay.attend()
        keep = len(alive) - recipe[layer]
        best = torch.sort(cross * own, descending=True, stable=True).indices[:keep].sort().values
        replay.keep(best)
        alive = alive[best]


def config(results: Path = Path(), **method: object) -> Request:
    options = {"fit_mode": "replay", "budget": "mean_tokens"}
    options |= {"return_last_trial": False, "n_calibration": 4}
    entry = {"name": "fitprune", "recipe": "calibrated", **options, **method}
    return Request({"method": entry, "ratio": 0.5, "model": {"name": "embedded"},
                    "paths": {"results": str(results)}})  # fmt: skip


def stored(results: Path, name: str = "a", **identity: object) -> Path:
    folder = recipes.folder(results)
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"checkpoint": "abc", "ratio": 0.5, "bench": "textvqa", "data": {"source": "mini"}}
    whole |= {k: v for k, v in config().method.options.items() if k in recipes.SEARCH_OPTIONS}
    path = folder / f"{name}.json"
    content = {"identity": {**whole, **identity}, "fractions": [0.25, 0.5], "samples": 4}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_stored_recipe_is_found_by_checkpoint_ratio_and_search_options(tmp_path):
    stored(tmp_path, "other-model", checkpoint="xyz")
    stored(tmp_path, "other-ratio", ratio=0.7)
    stored(tmp_path, "other-search", fit_mode="offline")
    notes: list[str] = []
    with pytest.raises(ConfigError, match="task=calibrate method=fitprune ratio=0.5"):
        recipes.resolve(config(tmp_path), "abc", notes)
    right = stored(tmp_path, "right")
    resolved = recipes.resolve(config(tmp_path), "abc", notes)
    assert resolved.method.options["recipe"] == [0.25, 0.5]
    assert right.name in notes[0]


def test_two_fitting_recipes_must_be_told_apart_by_file(tmp_path):
    one, two = stored(tmp_path, "one"), stored(tmp_path, "two", bench="gqa")
    with pytest.raises(ConfigError, match="several"):
        recipes.resolve(config(tmp_path), "abc", [])
    chosen = recipes.resolve(config(tmp_path, recipe=str(two)), "abc", [])
    assert chosen.method.options["recipe"] == [0.25, 0.5]
    with pytest.raises(ConfigError, match="another checkpoint"):
        recipes.resolve(config(tmp_path, recipe=str(one)), "else", [])
    with pytest.raises(ConfigError, match="no stored recipe"):
        recipes.resolve(config(tmp_path, recipe=str(tmp_path / "nothing.json")), "abc", [])


def test_other_methods_and_published_recipes_are_left_alone(tmp_path):
    for entry in ({"name": "gprune"}, {"name": "fitprune", "recipe": "published"}):
        given = Request({"method": entry, "ratio": 0.5})
        assert recipes.resolve(given, "abc", []) is given


@pytest.mark.slow
def test_calibrate_then_run_a_cell_from_the_command_line(tmp_path):
    common = ["method=fitprune", "ratio=0.5", f"paths.results={tmp_path}", "method.n_calibration=4"]

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return command_tools.run("run.py", *common, *arguments)

    missing = run("method.recipe=calibrated", "bench.limit=4")
    assert missing.returncode == 2 and "task=calibrate" in missing.stderr
    made = run("task=calibrate")
    assert made.returncode == 0, made.stderr
    assert "saves" in made.stdout
    used = run("method.recipe=calibrated", "bench.limit=4")
    assert used.returncode == 0, used.stderr
    assert "recipe calibrated on 4 samples" in used.stdout
    result = json.loads(next(tmp_path.glob("runs/**/result.json")).read_text(encoding="utf-8"))
    assert result["counters"]["removal"] == pytest.approx(0.5, abs=0.01)
    impossible = run("task=calibrate", "ratio=0.95")
    assert impossible.returncode != 0
    assert "feasible range" in impossible.stderr and "Traceback" not in impossible.stderr
