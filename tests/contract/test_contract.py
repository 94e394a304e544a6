"""What every pruning method owes, whatever it does; methods are found by the registry."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
import torch

from tests import tiny
from tests.method_tools import CLS, built
from vtprune import methods
from vtprune.methods import LayerMethod, TokenMethod
from vtprune.models import prune
from vtprune.models.errors import PruningUnsupported
from vtprune.models.oracle import masked

TOLERANCE = 1e-4


def pruned(family: str, kernel: str, method: methods.PruningMethod, numbers=(0,), **kw):
    """Generate for the test prompts ``numbers``; returns output, records and the inputs."""
    model = tiny.model(family, kernel)
    feed = tiny.inputs(family, [tiny.prompt(family, i) for i in numbers])
    with prune(model, method) as run:
        run.begin([f"sample-{i}" for i in numbers])
        out = tiny.generate(model, dict(feed), **kw)
        return out, run.take(), feed


@cache
def known(name: str, family: str, kernel: str, numbers: tuple[int, ...], steps: int = tiny.STEPS):
    """A pruned run with a method's usual options, made once; nobody changes what it returns."""
    return pruned(family, kernel, built(name, family), numbers, steps=steps)


@cache
def untouched(family: str, kernel: str, numbers: tuple[int, ...], steps: int):
    """What the model generates outside any context, made once."""
    feed = tiny.inputs(family, [tiny.prompt(family, i) for i in numbers])
    return tiny.generate(tiny.model(family, kernel), feed, steps=steps)


def _hooks(model) -> list[tuple[list, list]]:
    return [(list(m._forward_pre_hooks), list(m._forward_hooks)) for m in model.modules()]


def kept(record) -> list[tuple[int, list[int]]]:
    return [(layer, torch.nonzero(alive).flatten().tolist()) for layer, alive in record.stages]


@pytest.mark.parametrize("rows", [(0,), (0, 1, 2)], ids=["single", "ragged"])
def test_pruned_run_equals_the_full_run_with_dropped_tokens_masked(method, family, kernel, rows):
    out, records, feed = known(method, family, kernel, rows)
    model = tiny.model(family, kernel)
    with masked(model, records):
        reference = tiny.generate(model, dict(feed))
    unpruned = untouched(family, kernel, rows, 1)
    assert torch.equal(out.sequences, reference.sequences)
    for step, (mine, theirs) in enumerate(zip(out.logits, reference.logits, strict=True)):
        assert (mine - theirs).abs().max() <= TOLERANCE, f"step {step}"
    moved = (out.logits[0] - unpruned.logits[0]).abs().max()
    assert moved > 0.1, f"pruning hardly moves the logits ({moved:.3f}): the test has no power"


@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_exactly_the_planned_number_of_tokens_enters_each_layer(method, family, ratio):
    one = built(method, family, ratio=ratio)
    _, records, _ = pruned(family, "sdpa", one, (0, 1), steps=1)
    for record in records:
        if isinstance(one, LayerMethod):
            plan = one.checked_schedule(record.n_layers, record.visual_tokens)
            assert record.visual_per_layer == list(plan)
            continue
        if one.stage == "compose":
            entry = record.visual_per_layer[0]
            plan = one.part("layers").checked_schedule(record.n_layers, entry)
            assert entry < record.visual_tokens and plan[-1] < entry
            assert record.visual_per_layer == list(plan)
            continue
        n_newline = record.visual_tokens - sum(record.views)
        if one.scope == "per_tile" and family not in tiny.M_ROPE:
            per_crop = tiny.CROP // tiny.PATCH
            most = record.crops * one.count(per_crop * per_crop)
            least = 1
        else:
            most = least = sum(one.count(n) for n in record.views)
        if one.newline == "keep":
            most, least = most + n_newline, least + n_newline
        assert least <= record.visual_per_layer[0] <= most
        assert len(set(record.visual_per_layer)) == 1


def test_text_survives_and_later_layers_never_regain_a_token(method, family):
    _, records, _ = known(method, family, "sdpa", (0, 1), 1)
    for record in records:
        alive = torch.ones(record.visual_tokens, dtype=torch.bool)
        for layer in range(record.n_layers):
            now = record.alive(layer)
            assert not (now & ~alive).any()
            assert record.keep_mask(layer).sum() == record.tokens_per_layer[layer]
            alive = now
        assert not alive.all()


def test_ratio_zero_is_the_untouched_model_bit_for_bit(method, family, kernel):
    plain = untouched(family, kernel, (0, 1), 4)
    out, records, _ = pruned(family, kernel, built(method, family, ratio=0.0), (0, 1), steps=4)
    assert torch.equal(out.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(out.logits, plain.logits, strict=True))
    assert all(r.mean_removal == 0 for r in records)


def test_the_model_is_as_before_when_the_context_ends(method, family):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as table

    model = tiny.model(family, "sdpa")
    lookup = dict(table._local_mapping)
    hooks = _hooks(model)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    feed = tiny.inputs(family, [tiny.prompt(family, 0)])
    before = untouched(family, "sdpa", (0,), 3)
    pruned(family, "sdpa", built(method, family), (0,), steps=3)
    after = tiny.generate(model, dict(feed), steps=3)
    assert all(torch.equal(a, b) for a, b in zip(before.logits, after.logits, strict=True))
    assert dict(table._local_mapping) == lookup
    assert "get_image_features" not in model.model.__dict__
    assert _hooks(model) == hooks
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_a_sample_keeps_the_same_tokens_alone_and_in_any_batch(method, family):
    together, records, _ = known(method, family, "sdpa", (0, 1, 2))
    turned, reverse, _ = known(method, family, "sdpa", (2, 1, 0))
    for i, record in enumerate(records):
        alone, single, _ = known(method, family, "sdpa", (i,))
        assert kept(record) == kept(single[0]) == kept(reverse[2 - i])
        tokens = alone.sequences[0, -tiny.STEPS :]
        assert torch.equal(tokens, together.sequences[i, -tiny.STEPS :])
        assert torch.equal(tokens, turned.sequences[2 - i, -tiny.STEPS :])


def test_every_kernel_keeps_the_same_tokens(method, family):
    """Two rows: a kernel that takes all pictures in one call must not be heard across them."""
    _, fused, _ = known(method, family, "sdpa", (0, 1), 1)
    for kernel in ("eager", "segmented"):
        _, other, _ = known(method, family, kernel, (0, 1), 1)
        assert [kept(r) for r in other] == [kept(r) for r in fused], kernel


def test_two_runs_with_one_seed_agree(method, family):
    one = built(method, family, seed=3)
    first = pruned(family, "sdpa", one, (0,), steps=1)[1]
    again = pruned(family, "sdpa", one, (0,), steps=1)[1]
    assert kept(first[0]) == kept(again[0])


def test_without_a_cache_the_first_decision_stands(method, family):
    one = built(method, family)
    cached = pruned(family, "sdpa", one, (0, 1), steps=5)
    without = pruned(family, "sdpa", one, (0, 1), steps=5, use_cache=False)
    assert torch.equal(cached[0].sequences, without[0].sequences)
    assert [kept(r) for r in cached[1]] == [kept(r) for r in without[1]]


def test_the_cost_of_selection_is_stated(method):
    one = built(method, "llava_next")
    shape = methods.SelectionShape(
        views=(64, 176),
        kept=(32, 88),
        width=48,
        vision_width=32,
        tiles=4,
        patches=64,
        sequence=(260,) * 8,
        visual=(240, 240, *[120] * 6),
        attention_width=48,
    )
    cost = one.cost(shape)
    assert isinstance(cost, int) and 0 <= cost < 10**12


def test_the_method_says_what_it_is(method):
    cls = methods.get(method)
    assert cls.title and cls.__doc__ and len(cls.__doc__) > 80
    assert cls.stage in ("projector", "vision", "layer", "compose")
    assert cls.stage == "compose" or issubclass(cls, TokenMethod | LayerMethod)


def test_a_missing_cls_token_is_refused_naming_the_substitute(method):
    cls = methods.get(method)
    one = methods.build(method, **{**cls.example, "positions": "original"}, **_unpadded(cls))
    if not CLS & set(one.needs):
        pytest.skip("reads no CLS token")
    with (
        pytest.raises(PruningUnsupported, match="CLS") as caught,
        prune(tiny.model("qwen2_vl"), one),
    ):
        pass
    assert all(str(value) in str(caught.value) for value in cls.without_cls.values())


def _unpadded(cls) -> dict[str, str]:
    return {"anyres": "unpad"} if "anyres" in {f.name for f in dataclasses.fields(cls)} else {}
