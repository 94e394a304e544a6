"""The timing pass: planted delays appear where they were planted, sums and sizes agree."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests import tiny
from vtprune import methods
from vtprune.harness.cost import architecture_of, shapes
from vtprune.harness.cost.ledger import kv_cache_bytes
from vtprune.harness.cost.timing import clock, measure, predict, report, run
from vtprune.harness.cost.timing.samples import draw
from vtprune.harness.request.errors import ConfigError
from vtprune.harness.request.request import Request, Timing
from vtprune.methods import TokenMethod, build
from vtprune.methods.fastv import FastV
from vtprune.models import prune
from vtprune.models.load import VLM

TIMING = {"images": None, "repeats": 2, "warmup": 1, "new_tokens": 3, "batch_sizes": [1]}
LIMITS = {"min_pixels": 64, "max_pixels": 64 * 64}  # of processors with any resolution
DELAY = 0.4  # longer than anything a loaded machine adds to the least of two repeats


@dataclass(frozen=True, kw_only=True)
class Slow(TokenMethod):
    """Keeps the first tokens, slowly."""

    def score(self, view):
        time.sleep(DELAY / 2)  # there are two views
        return -torch.arange(len(view)).float()


@dataclass(frozen=True, kw_only=True)
class SlowInside(FastV):
    """FastV, slowly."""

    def score(self, signals):
        time.sleep(DELAY)
        return super().score(signals)


def measured(method, family="llava_next", batch=1, **changes):
    model = tiny.model(family)
    vlm = VLM(model, None, "tiny", "cpu", "float32")
    timing = Timing.of({**TIMING, **changes})
    return run.time_batch(vlm, method, [(64, 64)], 8, LIMITS, timing, batch)


def seconds(side: dict, stage: str) -> float:
    return side["seconds"][stage]["low"]


@pytest.mark.parametrize("method", [Slow(ratio=0.5), SlowInside(ratio=0.5)], ids=["token", "layer"])
def test_a_delay_in_a_method_is_in_its_column_and_nowhere_else(method):
    batch = measured(method)
    pruned, before = batch["pruned"], batch["baseline"]
    assert DELAY <= seconds(pruned, "selection") < 2 * DELAY
    assert seconds(before, "selection") == 0
    for stage in ("setup", "vision", "prefill", "decode"):
        assert seconds(pruned, stage) < DELAY
    assert batch["comparison"]["lost_seconds"]["selection"] >= DELAY


@pytest.mark.parametrize(
    ("stage", "module"), [("vision", "vision_tower"), ("prefill", "language_model")]
)
def test_a_delay_in_the_model_is_in_the_stage_of_its_module(stage, module):
    model = tiny.model("llava_next")
    hook = getattr(model.model, module).register_forward_hook(lambda *_: time.sleep(DELAY))
    try:
        pruned = measured(build("gprune", ratio=0.5), new_tokens=1)["pruned"]
    finally:
        hook.remove()
    assert DELAY <= seconds(pruned, stage) < 2 * DELAY
    assert seconds(pruned, "selection") < DELAY


def test_the_stages_add_up_to_the_call_measured_without_clocks():
    """A call so long that what a busy machine adds is little beside it."""
    pruned = measured(Slow(ratio=0.5), repeats=3)["pruned"]
    assert pruned["sum_of_stages_over_end_to_end"] == pytest.approx(1, abs=0.1)


def test_rounds_go_on_until_stages_and_whole_agree_or_enough_were_made(monkeypatch):
    made = iter([*[1.2] * 5, *[1.0] * 20])  # of both sides in turn: apart in the first two rounds

    def one_round(*_):
        whole = dict.fromkeys(measure.STAGES, 0.0) | {"prefill": next(made)}
        return {**whole, "end_to_end": 1.0}, {}

    monkeypatch.setattr(run, "_one_round", one_round)
    sides, nothing = ({"baseline": made, "pruned": made} for made in (None, []))
    vlm = VLM(None, None, "tiny", "cpu", "float32")
    rounds, _ = run._rounds(vlm, sides, nothing, Timing.of({**TIMING, "warmup": 0, "settle": 9}))
    assert len(rounds["pruned"]) == 7  # one side was apart three times, then together four times
    made = iter([1.2] * 99)
    rounds, _ = run._rounds(vlm, sides, nothing, Timing.of({**TIMING, "warmup": 1, "settle": 3}))
    assert len(rounds["pruned"]) == 6


def test_the_cache_is_as_large_as_the_ledger_says():
    method = build("fastv", ratio=0.5)
    batch, steps = measured(method), TIMING["new_tokens"] - 1
    model = tiny.model("llava_next")
    arch = architecture_of(model.config)
    with prune(model, method) as handle, torch.no_grad():
        model(**draw(model, [(64, 64)], 8, 1, {})[0].feed, use_cache=True)
        record = handle.take()[0]
    generated = 2 * arch.text.key_value * 4 * arch.text.layers * steps
    assert batch["pruned"]["kv_cache_bytes"] == kv_cache_bytes(arch, record, 4) + generated
    assert batch["pruned"]["kv_cache_bytes"] < batch["baseline"]["kv_cache_bytes"]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_and_batch_size_can_be_timed(family):
    batch = measured(build("gprune", ratio=0.5), family, batch=2, warmup=0)
    assert batch["pruned"]["visual_kept"] < batch["samples"][0]["visual_tokens"]
    rate, whole = batch["pruned"]["samples_per_s"], seconds(batch["pruned"], "end_to_end")
    assert rate["high"] == pytest.approx(2 / whole)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("name", ["downsample", "text_only"])
def test_controls_that_change_the_picture_are_timed_on_their_own_prompt(name, family):
    method = build(name, **methods.get(name).example)
    batch = measured(method, family, batch=2, warmup=0)
    full, kept = batch["samples"][0]["visual_tokens"], batch["pruned"]["visual_kept"]
    assert kept == 0 if name == "text_only" else 0 < kept <= full / 2
    macs, before = batch["pruned"]["macs"], batch["baseline"]["macs"]
    assert macs["prefill"] < before["prefill"] and macs["vision"] < before["vision"]
    assert batch["pruned"]["kv_cache_bytes"] < batch["baseline"]["kv_cache_bytes"]


def test_predictions_scale_the_baselines_times():
    stages = {"setup": 1.0, "vision": 2.0, "selection": 0.0, "prefill": 8.0, "decode": 4.0}
    macs = {"vision": 10, "selection": 0, "prefill": 100, "decode": 50}
    base = {"macs": macs, "seconds": {**stages, "end_to_end": 15.0}}
    pruned = {
        "macs": {**macs, "prefill": 25, "selection": 5},
        "seconds": {**stages, "selection": 1.0, "prefill": 3.0, "end_to_end": 11.0},
    }
    seen = predict.compare(base, pruned)
    assert seen["predicted"]["prefill"] == 4
    assert seen["measured"]["prefill"] == pytest.approx(8 / 3)
    assert seen["measured"]["prefill_with_selection"] == 2
    assert seen["predicted"]["end_to_end"] == pytest.approx(15 / 9)
    assert seen["lost_seconds"] == {
        "setup": 0, "vision": 0, "prefill": 1, "decode": 0, "selection": 1
    }  # fmt: skip


def test_the_interval_is_that_of_order_statistics():
    assert clock.interval([3.0]) == (3.0, 3.0)
    assert clock.interval([5, 1, 2, 4, 3]) == (1, 5)
    assert clock.interval(range(1, 11)) == (2, 9)  # 97.9 %; (3, 8) would be 89 %


def _request(tmp_path: Path, **changes) -> Request:
    text = tiny.text_config()
    config = {"model_type": "llava", "image_token_index": tiny.IMAGE_TOKEN, "text_config": text,
              "vision_config": tiny.vision_config()}  # fmt: skip
    file = tmp_path / "small.json"
    file.write_text(json.dumps({"config": config}), encoding="utf-8")
    model = {"name": "small", "architecture": str(file), "weights": "random", "device": "cpu"}
    return Request({
        "model": model, "method": {"name": "gprune"}, "ratio": 0.5, "seed": 0, "timing": TIMING,
        "image_size": "32x32", "text_tokens": 8, "paths": {"results": str(tmp_path)}, **changes,
    })  # fmt: skip


def test_random_weights_need_no_checkpoint_and_the_result_is_stored(tmp_path):
    result = run.run_timing(_request(tmp_path))
    stored = json.loads((Path(result["directory"]) / "timing.json").read_text(encoding="utf-8"))
    assert stored["key"] == result["key"]
    assert stored["identity"]["model"]["weights"] == "random"
    assert stored["identity"]["model"]["attention"] == "sdpa"  # one for both sides
    text = report.report(result)
    assert "random weights" in text and "selection" in text and "sum of stages" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timing": {**TIMING, "repeats": 0}}, "timing.repeats"),
        ({"timing": {**TIMING, "batch_sizes": []}}, "timing.batch_sizes"),
        ({"timing": {**TIMING, "images": ["big"]}}, "timing.images"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        run.run_timing(_request(tmp_path, **changes))


def test_samples_are_the_same_in_every_run():
    model = tiny.model("qwen2_vl")
    first, again = (draw(model, [(64, 64)], 8, 2, {})[0] for _ in range(2))
    assert all(torch.equal(first.feed[k], again.feed[k]) for k in first.feed)
    assert first.visual_tokens == 8 * 8
    assert shapes.parse_size("64x48") == (64, 48)
