"""Shared vision features: answers equal token for token, and really shared."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests import checkpoint_tools, family_checkpoints, tiny
from tests.method_tools import built
from vtprune import methods
from vtprune.harness import cli
from vtprune.harness.cell import sharing
from vtprune.harness.cell.answerer import ModelAnswerer
from vtprune.harness.cell.sharing import VisionCache, shared
from vtprune.harness.evaluation.engines.base import Question
from vtprune.harness.request.presets import Settings
from vtprune.models import PruningRun, prune
from vtprune.models.families.base import VisionCapture
from vtprune.models.load import load

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent

# What each of them reads of the encoder differs: nothing, the projector, CLS rows, other layers;
# one gives it smaller pictures.
METHODS = "none,gprune,fastv,downsample,visionzip,prumerge,random,sparsevlm,divprune,vispruner"
KEPT = ("answer", "generated_tokens", "prompt_tokens", "visual_kept", "macs", "score", "pruning")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return checkpoint_tools.save(tmp_path_factory.mktemp("tiny"))


def sweep(checkpoint, results, *arguments):
    status = cli.main([
        "-m", f"method={METHODS}", "ratio=0.5", f"model.path={checkpoint}", "data.samples=6",
        "batch_size=4", "decoding.max_new_tokens=4", f"paths.results={results}", *arguments,
    ])  # fmt: skip
    journals = {}
    for file in results.glob("runs/*/*/*/samples.jsonl"):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        journals[file.parent.name] = [{k: row[k] for k in KEPT} for row in rows]
    results = [
        json.loads(f.read_text(encoding="utf-8")) for f in results.glob("runs/*/*/*/result.json")
    ]
    return status, journals, {r["method"]: r["shared_vision"] for r in results}


@pytest.mark.slow
def test_answers_with_and_without_sharing_are_equal(checkpoint, tmp_path, capsys):
    status, alone, hits = sweep(checkpoint, tmp_path / "alone", "sweep.share_vision=false")
    assert status == 0, capsys.readouterr().err
    assert len(alone) == 10 and set(hits.values()) == {0}
    status, together, hits = sweep(checkpoint, tmp_path / "together")
    assert status == 0 and together == alone
    assert hits["downsample"] == 0, "its crops are smaller"
    assert hits["none"] == 0 and hits["random"] == hits["divprune"] == hits["vispruner"] == 2, hits
    assert sharing.current() is None, "nothing is left open"


def test_a_single_run_shares_nothing(checkpoint, tmp_path):
    options = [f"model.path={checkpoint}", "data.samples=2", f"paths.results={tmp_path}"]
    assert cli.main([*options, "decoding.max_new_tokens=2"]) == 0
    (result,) = tmp_path.glob("runs/*/*/*/result.json")
    assert json.loads(result.read_text(encoding="utf-8"))["shared_vision"] == 0


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def vlm(request, tmp_path_factory):
    folder = family_checkpoints.save(request.param, tmp_path_factory.mktemp(request.param))
    return load({"path": folder, "name": request.param, "device": "cpu", "threads": 1})


def questions():
    pictures = [_picture(size, seed) for seed, size in enumerate([(50, 90), (64, 20), (33, 33)])]
    rows = [pictures[:1], pictures[1:], [], pictures[2:]]  # one image, two, none, one again
    return [
        Question(n, f"t:{n}", "What is it" + "?" * (1 + n), lambda own=own: tuple(own))
        for n, own in enumerate(rows)
    ]


def _picture(size, seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def answers(vlm, method, cache=None):
    """What a method answers and keeps, in batches of two."""
    asked = questions()
    with prune(vlm.model, method) as run:
        run.shared = cache
        answerer = ModelAnswerer(vlm, run, Settings("checkpoint", max_new_tokens=5))
        given = [one for i in (0, 2) for one in answerer.answer(asked[i : i + 2])]
    return [(a.text, a.generated_tokens, a.extra["pruning"], a.extra["macs"]) for a in given]


def every_method(family):
    """All methods the family has a definition for, some twice, ToMe also in the encoder."""
    made = []
    for name in [*methods.available(), "gprune", "vispruner", "tome"]:
        with contextlib.suppress(pytest.skip.Exception):
            made.append(built(name, family))
        if name == "tome" and family in tiny.WITH_CLS:
            made.append(methods.build("tome", ratio=0.4, placement="vision_encoder"))
    return made


def test_all_methods_answer_alike_with_one_cache_on_every_family(vlm):
    """One after another as in a job, each with what those before it left in the cache."""
    family, cache = vlm.model.config.model_type, VisionCache(10**9)
    hits = {}
    for method in every_method(family):
        cache.hits = cache.misses = 0
        assert answers(vlm, method, cache) == answers(vlm, method), method
        merging = getattr(method, "placement", "") == "vision_encoder"
        if merging:
            assert cache.hits + cache.misses == 0, "merged features are never remembered"
        hits.setdefault(method.name, []).append(cache.hits)
    assert len(hits) >= 20
    assert hits["random"] == [2] and hits["gprune"][-1] == 2, "both batches came from the cache"
    assert hits["vispruner"][-1] == 2, "what it read of the encoder the first time is there"


class Encoder:
    """Counts its calls; the last element of its input changes its output."""

    calls = 0

    def __call__(self, pixels, layer=1):
        self.calls += 1
        return {"pooler_output": [pixels * 2 + layer]}


class Output(dict):
    """Stands for a transformers output class."""

    def to_tuple(self):
        return tuple(self.values())


def call(cache, encoder, pixels, needs=(), **kwargs):
    capture = VisionCapture()

    def inner(*args, **given):
        if needs:
            capture.projector_input = pixels + 1
            capture.attention["cls"] = [(pixels, pixels, 0.5)]
        return Output(encoder(*args, **given))

    return cache.encode(inner, (pixels,), kwargs, capture, frozenset(needs)), capture


def test_a_call_is_the_same_only_with_equal_inputs_and_enough_signals():
    cache, encoder, pixels = VisionCache(10**6), Encoder(), torch.arange(6.0).reshape(2, 3)
    first, _ = call(cache, encoder, pixels)
    again, _ = call(cache, encoder, pixels.clone())
    assert encoder.calls == 1 and torch.equal(first["pooler_output"][0], again["pooler_output"][0])
    again["pooler_output"][0].zero_()
    third, _ = call(cache, encoder, pixels)
    assert torch.equal(first["pooler_output"][0], third["pooler_output"][0]), "a copy each time"
    other = pixels.clone()
    other[1, 2] += 1e-6 * 8
    call(cache, encoder, other)
    call(cache, encoder, pixels, layer=2)
    call(cache, encoder, pixels.double())
    assert encoder.calls == 4
    call(cache, encoder, pixels, needs=["cls"])
    assert encoder.calls == 5, "the signal was not there"
    _, capture = call(cache, encoder, pixels, needs=["cls"])
    assert encoder.calls == 5 and torch.equal(capture.projector_input, pixels + 1)
    assert capture.attention["cls"][0][2] == 0.5
    call(cache, encoder, pixels)
    assert encoder.calls == 5


def test_a_full_cache_keeps_what_came_first_and_a_new_scope_empties_it():
    pixels = [torch.full((2, 3), float(n)) for n in range(3)]
    cache, encoder = VisionCache(2 * 24), Encoder()
    for _ in range(2):
        for one in pixels:
            call(cache, encoder, one)
    assert encoder.calls == 4 and len(cache.entries) == 2 and cache.held == 48
    cache.enter("another model")
    assert cache.entries == {} and cache.held == 0


def test_the_timing_pass_and_plain_library_use_never_share():
    for file in (ROOT / "harness/timing").rglob("*.py"):
        assert "sharing" not in file.read_text(
            encoding="utf-8"
        ) and ".shared" not in file.read_text(encoding="utf-8"), file
    with shared(1):
        assert PruningRun(methods.build("none")).shared is None
