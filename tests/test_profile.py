"""task=profile: the true architectures, counted without weights; and its pictures."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import yaml

from tests import tiny
from vtprune import methods
from vtprune.harness.cost import profile, shapes
from vtprune.harness.cost.timing import run as timing_run
from vtprune.harness.reporting.figures import cost as figures
from vtprune.harness.request.errors import ConfigError, HarnessError
from vtprune.harness.request.request import Request
from vtprune.models import prune
from vtprune.models.describe import describe, hf_config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "models" / "architectures").glob("*.json"))
#: parameters in 10^9, as the model cards state them or the checkpoints' files add up to
PARAMETERS = {
    "llava15_7b": 7.06, "llava15_13b": 13.35, "llava_next_7b": 7.06, "llava_next_13b": 13.35,
    "llava_next_mistral_7b": 7.57, "llava_next_8b": 8.36, "qwen2_vl_2b": 2.21,
    "qwen2_vl_7b": 8.29, "qwen2_5_vl_7b": 8.29, "llava_onevision_7b": 8.03,
}  # fmt: skip

#: windows are traced one by one
SIZES = {"qwen2_5_vl_7b": "250x150"}


def request(name: str, method: str = "gprune", ratio: float = 0.7, **changes) -> Request:
    return Request({
        "model": {"name": name, "architecture": str(ROOT / f"models/architectures/{name}.json")},
        "method": {"name": method}, "ratio": ratio, "seed": 0, "image_size": "672x672",
        "text_tokens": 64, **changes,
    })  # fmt: skip


def test_every_published_model_has_an_architecture():
    named = {f.stem for f in FILES}
    for file in (ROOT / "conf" / "model").glob("*.yaml"):
        entry = yaml.safe_load(file.read_text(encoding="utf-8"))
        if entry.get("hub"):
            assert f"{file.stem}.json" in entry["architecture"] and file.stem in named
            assert (
                json.loads((FILES[0].parent / f"{file.stem}.json").read_text(encoding="utf-8"))[
                    "source"
                ]
                == (entry["hub"])
            )


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_an_architecture_has_the_parameters_of_its_checkpoint(file):
    model = shapes.skeleton(hf_config(describe(file)))
    count = sum(p.numel() for p in model.parameters()) / 1e9
    assert count == pytest.approx(PARAMETERS[file.stem], abs=0.006)


@pytest.mark.parametrize("method", ["gprune", "fastv"])
@pytest.mark.parametrize("name", ["llava15_7b", "llava_next_8b", "qwen2_5_vl_7b"])
def test_the_ledger_equals_the_counter_on_the_true_architectures(name, method):
    result = profile.run_profile(request(name, method, image_size=SIZES.get(name, "1000x600")))
    for side in ("full", "pruned"):
        for stage, counted in result[side]["counted"].items():
            assert result[side]["stages"][stage] == counted, (side, stage)
    assert profile.disagreements(result) == []
    assert "= the ledger, in every stage" in profile.report(result)


@pytest.fixture(scope="module")
def small():
    return profile.run_profile(request("qwen2_vl_2b", "gprune", image_size="224x224"))


@pytest.mark.xdist_group("profile")
@pytest.mark.parametrize("wrong", ["stages", "counted", "attention", "fvcore"])
def test_a_count_that_is_wrong_by_one_is_told_with_its_stage(small, wrong):
    result = copy.deepcopy(small)
    assert profile.disagreements(result) == []
    side = result["pruned"][wrong]
    if wrong == "fvcore":
        side["llm"]["macs"] += 1
    else:
        side["llm"] += 1
    (told,) = profile.disagreements(result)
    assert told.startswith("llm (pruned): ledger ")
    assert f"DISAGREE: {told}" in profile.report(result)


def test_fvcore_says_what_it_does_not_see():
    result = profile.run_profile(request("llava15_7b", "gprune", image_size="336x336"))
    seen = result["full"]["fvcore"]
    assert seen["llm"]["skipped"]["scaled_dot_product_attention"] == 32
    assert seen["vision"]["skipped"]["scaled_dot_product_attention"] == 24, "the unused layer too"
    assert seen["llm"]["macs"] < result["full"]["stages"]["llm"]
    assert "fvcore sees no fused attention (56 calls" in profile.report(result)


@pytest.mark.parametrize("name", ["llava15_7b", "llava_next_8b", "qwen2_vl_7b", "qwen2_5_vl_7b"])
@pytest.mark.parametrize(("method", "ratio"), [("downsample", 0.5), ("text_only", 1.0)])
def test_controls_that_change_the_picture_are_counted_at_their_size(name, method, ratio):
    size = SIZES.get(name, "1000x600")
    result = profile.run_profile(request(name, method, ratio, image_size=size))
    for stage, counted in result["pruned"]["counted"].items():
        assert result["pruned"]["stages"][stage] == counted, stage
    assert result["pruned"]["stages"]["vision"] < result["full"]["stages"]["vision"]
    assert ratio <= result["mean_removal"] <= 1
    assert result["visual_tokens"] > result["visual_per_layer"][0]


def test_the_profile_of_the_papers_model():
    result = profile.run_profile(request("llava_next_8b"))
    assert result["visual_tokens"] == 576 + 48 * 49
    assert result["visual_per_layer"] == [172 + 691 + 48] * 32
    assert result["full"]["conventions"]["flops"] == 2 * result["full"]["conventions"]["macs"]
    text = profile.report(result)
    assert "911 (32 layers)" in text and "paper_gprune" in text and "the same" in text


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gprune", {}),
        ("random", {"scope": "joint", "newline": "drop"}),
        ("divprune", {}),
        ("fastv", {}),
        ("compose", {"first": "l2norm"}),
    ],
)
def test_the_planned_record_is_that_of_a_run(family, name, options):
    if family in tiny.M_ROPE:
        options = {**options, "positions": "original"}
    method = methods.build(name, ratio=0.6, **options)
    model = tiny.model(family)
    inputs = shapes.encoder_inputs(model, (64, 64), {})
    layout = shapes.layout(model, inputs)
    ids = torch.tensor([[6, 7, 8, *[tiny.IMAGE_TOKEN] * len(layout), 9, 10, 11]])
    feed = {**inputs, "pixel_values": torch.randn(inputs["pixel_values"].shape), "input_ids": ids}
    if family in tiny.M_ROPE:
        feed["mm_token_type_ids"] = (ids == tiny.IMAGE_TOKEN).int()
    with prune(model, method) as run, torch.no_grad():
        model(**feed)
        real = run.take()[0]
    planned = shapes.record(model, [layout], 6, method)
    for field in ("prompt_length", "crops", "grids", "views", "visual_per_layer"):
        assert getattr(planned, field) == getattr(real, field), field
    assert planned.visual.tolist() == real.visual.tolist()


@pytest.mark.parametrize("text", ["672", "0x3", "axb", "672x", None])
def test_a_wrong_image_size_is_one_line(text):
    with pytest.raises(ConfigError, match="image_size must be"):
        shapes.parse_size(text)


def test_a_model_without_sizes_is_one_line(tmp_path):
    model = {"name": "x", "architecture": str(tmp_path / "none.json")}
    with pytest.raises(ConfigError, match="cannot read the architecture"):
        profile.run_profile(request("llava15_7b").changed(model=model))


def test_pictures_are_drawn_from_a_result_folder(tmp_path):
    with pytest.raises(HarnessError, match="no profile"):
        figures.draw_breakdown(tmp_path, tmp_path)
    with pytest.raises(HarnessError, match="no timing"):
        figures.draw_speedup(tmp_path, tmp_path)
    for ratio in (0.5, 0.9):
        profile.store(profile.run_profile(request("llava15_7b", ratio=ratio)), tmp_path)
    side = {"predicted": 2.0, "measured": 1.9}
    comparison = {k: {"ttft": v, "end_to_end": v / 2} for k, v in side.items()}
    timed = {
        "method": "gprune", "ratio": 0.7, "model": "m", "key": "12345678",
        "batches": [{"batch_size": 1, "comparison": comparison}], "identity": {},
        "provenance": {}, "finished": "2026-01-01T00:00:00",
    }  # fmt: skip
    folder = timing_run._folder(timed, tmp_path)
    folder.mkdir(parents=True)
    (folder / "timing.json").write_text(json.dumps(timed), encoding="utf-8")
    bars = figures.bars(tmp_path)
    assert [b.label for b in bars] == ["unpruned", "gprune 0.5", "gprune 0.9"]
    assert [(p.stage, p.predicted, p.measured) for p in figures.points(tmp_path)] == [
        ("ttft", 2.0, 1.9), ("end_to_end", 1.0, 0.95)
    ]  # fmt: skip
    drawn = figures.draw_breakdown(tmp_path, tmp_path) + figures.draw_speedup(tmp_path, tmp_path)
    assert all(f.stat().st_size > 1000 for f in drawn)
    assert {f.suffix for f in drawn} >= {".png"}
