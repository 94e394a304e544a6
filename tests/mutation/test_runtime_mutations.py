"""Defects known from published ports, put into the runtime: each must turn a check red."""

from __future__ import annotations

import pytest
import torch

from tests import tiny
from vtprune import methods
from vtprune.methods import LayerMethod, TokenMethod
from vtprune.models import decode, enter, layers, prune, runtime, stage
from vtprune.models.errors import PruningUnsupported
from vtprune.models.families.llava import Llava
from vtprune.models.oracle import masked
from vtprune.models.packing import pack_left

TOKEN, LAYER = {"ratio": 0.5}, {"ratio": 0.5, "K": 3, "ratio_mode": "local"}


def check_masking_equivalence(name: str, rows: int = 2, family: str = "llava_next", **options):
    """The contract's central test for one method; raises AssertionError if it does not hold."""
    model = tiny.model(family)
    feed = tiny.inputs(family, [tiny.prompt(family, i) for i in range(rows)])
    with prune(model, name, **options) as run:
        out = tiny.generate(model, dict(feed), steps=5)
        records = run.take()
    with masked(model, records):
        reference = tiny.generate(model, dict(feed), steps=5)
    pairs = zip(out.logits, reference.logits, strict=True)
    assert max(float((a - b).abs().max()) for a, b in pairs) <= 1e-4


def check_counts(name: str, **options):
    """Planned and recorded numbers of tokens agree."""
    model, family = tiny.model("llava"), "llava"
    one = methods.build(name, **options)
    with prune(model, one) as run, torch.no_grad():
        model(**tiny.inputs(family, [tiny.prompt(family, 0)]))
        record = run.take()[0]
    if isinstance(one, LayerMethod):
        plan = list(one.checked_schedule(record.n_layers, record.visual_tokens))
    else:
        plan = [methods.n_keep(record.visual_tokens, options["ratio"])] * record.n_layers
    assert record.visual_per_layer == plan


def check_image_span():
    """The record's visual tokens are the placeholders of the prompt."""
    model = tiny.model("llava")
    feed = tiny.inputs("llava", [tiny.prompt("llava", 0)])
    image = (feed["input_ids"][0] == tiny.IMAGE_TOKEN).nonzero().squeeze(1)
    with prune(model, "l2norm", **TOKEN) as run, torch.no_grad():
        model(**feed)
        record = run.take()[0]
    assert record.visual.tolist() == image.tolist()


def test_the_checks_are_green_without_a_defect():
    check_image_span()
    check_masking_equivalence("l2norm", **TOKEN)
    check_masking_equivalence("fastv", **LAYER)
    check_counts("l2norm", **TOKEN)
    check_counts("fastv", **LAYER)


@pytest.mark.parametrize(("name", "options"), [("l2norm", TOKEN), ("fastv", LAYER)])
def test_tokens_in_score_order_instead_of_position_order(monkeypatch, name, options):
    def reversed_order(keep, width):
        order, _ = pack_left(keep, width)
        middle = slice(order.shape[1] // 3, order.shape[1] // 2)
        order = order.clone()
        order[:, middle] = order[:, middle].flip(1)
        return order, keep.gather(1, order)

    monkeypatch.setattr(layers, "pack_left", reversed_order)
    monkeypatch.setattr(enter, "pack_left", reversed_order)
    with pytest.raises(AssertionError):
        check_masking_equivalence(name, rows=1, **options)


def test_the_scoring_layer_runs_twice_and_doubles_its_cache(monkeypatch):
    inner = runtime.Runtime._before_layer

    def twice(self, number, module, args, kwargs):
        cache = kwargs.get("past_key_values")
        if self._forward.choosing is not None and number == LAYER["K"]:
            entry = cache.layers[number - 1]
            entry.keys = torch.cat([entry.keys, entry.keys], dim=2)
            entry.values = torch.cat([entry.values, entry.values], dim=2)
        return inner(self, number, module, args, kwargs)

    monkeypatch.setattr(runtime.Runtime, "_before_layer", twice)
    with pytest.raises((AssertionError, RuntimeError)):
        check_masking_equivalence("fastv", rows=1, family="llava", **LAYER)


def test_the_ratio_is_ignored(monkeypatch):
    monkeypatch.setattr(TokenMethod, "count", lambda self, n, ratio=None: max(1, n - 1))
    with pytest.raises(AssertionError):
        check_counts("l2norm", **TOKEN)


def test_the_drop_happens_one_layer_late(monkeypatch):
    inner = layers.Choosing.due
    monkeypatch.setattr(layers.Choosing, "due", lambda self, layer: inner(self, layer - 1))
    with pytest.raises((AssertionError, RuntimeError)):
        check_counts("fastv", **LAYER)


def test_survivors_are_silently_renumbered(monkeypatch):
    def renumbered(self, stage):
        return torch.arange(stage.width)[None]

    monkeypatch.setattr(runtime.Step, "columns", renumbered)
    with pytest.raises(AssertionError):
        check_masking_equivalence("l2norm", rows=1, **TOKEN)


def test_rotary_angles_are_not_sliced_at_the_dropping_layer(monkeypatch):
    def unsliced(self, stage, hidden, given):
        return tuple(r[:, : hidden.shape[1]] for r in given)

    monkeypatch.setattr(runtime.Step, "rotation", unsliced)
    with pytest.raises(AssertionError):
        check_masking_equivalence("fastv", rows=1, **LAYER)


def test_padding_is_visible_while_decoding(monkeypatch):
    inner = stage.Step.mask

    def all_visible(self, there, hidden):
        there.full = there.full or self.decoding
        self.tail = None if self.decoding else self.tail
        return inner(self, there, hidden)

    monkeypatch.setattr(stage.Step, "mask", all_visible)
    for name, options in (("l2norm", TOKEN), ("fastv", LAYER)):
        with pytest.raises(AssertionError):
            check_masking_equivalence(name, **options)


def test_the_image_span_is_off_by_one(monkeypatch):
    inner = Llava.modality_codes
    monkeypatch.setattr(
        Llava, "modality_codes", lambda self, ids: inner(self, ids).roll(1, dims=1)
    )
    with pytest.raises(AssertionError):
        check_image_span()


def test_decode_counts_positions_from_the_shortened_cache(monkeypatch):
    inner = decode.follow

    def short(family, chain, named):
        named["position_ids"] = torch.tensor([[named["past_key_values"].get_seq_length()]])
        return inner(family, chain, named)

    monkeypatch.setattr(decode, "follow", short)
    with pytest.raises(AssertionError):
        check_masking_equivalence("l2norm", rows=1, **TOKEN)


def test_a_later_forward_follows_the_chain_of_the_last_prefill(monkeypatch):
    """State of the context instead of state of the cache: two requests in turns come apart."""
    last = []
    inner = runtime.hold
    monkeypatch.setattr(runtime, "hold", lambda cache, chain: (last.append(chain),
                                                               inner(cache, chain)))  # fmt: skip
    monkeypatch.setattr(runtime, "chain_of", lambda cache: last[-1])
    model = tiny.model("llava_next")
    feeds = [tiny.inputs("llava_next", [tiny.prompt("llava_next", i)]) for i in (0, 1)]
    step = torch.tensor([[30]])
    with prune(model, "fastv", **LAYER), torch.no_grad():
        first = model(**feeds[0], use_cache=True).past_key_values
        alone = model(input_ids=step, past_key_values=first).logits
        first = model(**feeds[0], use_cache=True).past_key_values
        model(**feeds[1], use_cache=True)
        try:
            turns = model(input_ids=step, past_key_values=first).logits
        except (PruningUnsupported, RuntimeError):
            return
    assert not torch.allclose(alone, turns, atol=1e-4)
