"""``compute_dtype=model`` in bfloat16: the same tokens, and merged ones right to the last bits."""

from __future__ import annotations

import copy

import pytest
import torch

from tests import tiny
from tests.method_tools import built
from vtprune import methods
from vtprune.methods import LayerSignals, ops
from vtprune.models import prune

V, Q, HEADS, WIDTH = 256, 16, 4, 32
BIT = 2.0**-8  # half of the distance of neighbouring bfloat16 numbers, relative


def signals(dtype: torch.dtype) -> LayerSignals:
    """Scores that bfloat16 holds exactly, so rounding decides nothing; states about few centres."""
    made = torch.Generator().manual_seed(0)
    score = torch.randperm(V, generator=made) / V
    centre = torch.randn(8, WIDTH, generator=made) * 4
    hidden = centre[torch.randint(8, (V,), generator=made)]
    hidden = hidden + 0.3 * torch.randn(V, WIDTH, generator=made)
    # Half of the text has the picture's direction, and rates it: a power of two of raters.
    text = torch.ones(Q, 4) * torch.where(torch.arange(Q) < Q // 2, 1.0, -1.0)[:, None]
    image = torch.ones(V, 4)
    image[: V // 2] *= -0.5
    found = {
        "text_rows": score.expand(HEADS, Q, V), "last_row": score.expand(HEADS, V),
        "text_embeddings": text, "image_embeddings": image, "hidden": hidden,
        "text_distance": torch.ones(Q, V), "keys": torch.ones(V, 2, 8),
    }  # fmt: skip
    found = {k: v.to(torch.bfloat16).to(dtype) for k, v in found.items()}
    return LayerSignals(2, 8, torch.arange(V), V, lambda name: found[name])


@pytest.mark.parametrize("raters", ["text", "last"])
@pytest.mark.parametrize("name", ["sparsevlm", "sparsevlm_plus"])
def test_sparsevlm_in_bfloat16_keeps_and_merges_what_it_does_in_float32(name, raters):
    half = methods.build(name, ratio=0.5, raters=raters, compute_dtype="model")
    whole = half.replace(compute_dtype="float32")
    found = half.checked_select(signals(torch.bfloat16), 64)
    wanted = whole.checked_select(signals(torch.float32), 64)
    assert found.indices.tolist() == wanted.indices.tolist()
    if name == "sparsevlm":
        assert found.features.dtype == torch.bfloat16
        torch.testing.assert_close(found.features.float(), wanted.features, rtol=BIT * 2, atol=1e-3)


def test_sums_of_many_halves_are_right_to_the_last_bit():
    values = torch.full((1000, 1), 0.99).bfloat16()
    (total,) = ops.Groups(torch.zeros(1000, dtype=torch.long), 1).sum(values)
    assert float(total) == pytest.approx(1000 * float(values[0, 0]), rel=BIT)


@pytest.fixture(scope="module")
def model():
    return copy.deepcopy(tiny.model("llava", "sdpa")).bfloat16()


@pytest.mark.parametrize(
    "name", [n for n in methods.available() if methods.get(n).stage not in ("none", "input")]
)
def test_a_bfloat16_model_is_pruned_as_planned_in_its_own_arithmetic(model, name):
    one = built(name, "llava", compute_dtype="model")
    if {"clip_similarity", "fg_mask"} & set(one.needs):
        pytest.skip("reads what a caller gives")
    feed = tiny.inputs("llava", [tiny.prompt("llava", 0)])
    feed = {k: v.bfloat16() if v.is_floating_point() else v for k, v in feed.items()}
    left = []
    for method in (one, one.replace(compute_dtype="float32")):
        with prune(model, method) as run, torch.no_grad():
            assert model(**feed).logits.isfinite().all()
            (record,) = run.take()
        left.append((record.visual_per_layer, record.alive(record.n_layers - 1)))
    (counts, mine), (planned, wanted) = left
    assert counts == planned
    # Rounding may exchange tokens of nearly equal scores; greedy choices then go other ways.
    assert int((mine & wanted).sum()) >= 0.8 * int(wanted.sum())
