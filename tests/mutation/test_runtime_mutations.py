"""Defects known from published ports, put into the runtime: each must turn a check red."""

from __future__ import annotations

import pytest
import torch

from tests import tiny
from vtprune import methods
from vtprune.methods import LayerMethod, TokenMethod
from vtprune.models import prune, runtime
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
    def reversed_order(keep):
        order, _ = pack_left(keep)
        middle = slice(order.shape[1] // 3, order.shape[1] // 2)
        order = order.clone()
        order[:, middle] = order[:, middle].flip(1)
        return order, keep.gather(1, order)

    monkeypatch.setattr(runtime, "pack_left", reversed_order)
    with pytest.raises(AssertionError):
        check_masking_equivalence(name, rows=1, **options)


def test_the_scoring_layer_runs_twice_and_doubles_its_cache(monkeypatch):
    inner = runtime.Runtime._before_layer

    def twice(self, number, module, args, kwargs):
        cache = kwargs.get("past_key_values")
        if self.batch is not None and self.batch.prefilling and number == LAYER["K"]:
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
    inner = runtime.Runtime._due
    monkeypatch.setattr(runtime.Runtime, "_due", lambda self, layer: inner(self, layer - 1))
    with pytest.raises((AssertionError, RuntimeError)):
        check_counts("fastv", **LAYER)


def test_survivors_are_silently_renumbered(monkeypatch):
    inner = runtime.Runtime._shorten

    def renumbered(self, named, *rest):
        args, named = inner(self, named, *rest)
        named["position_ids"] = torch.arange(named["inputs_embeds"].shape[1])[None]
        return args, named

    monkeypatch.setattr(runtime.Runtime, "_shorten", renumbered)
    with pytest.raises(AssertionError):
        check_masking_equivalence("l2norm", rows=1, **TOKEN)


def test_rotary_angles_are_not_sliced_at_the_dropping_layer(monkeypatch):
    def unsliced(self, hidden, rotation):
        return tuple(r[:, : hidden.shape[1]] for r in rotation)

    monkeypatch.setattr(runtime.Runtime, "_slot_rotation", unsliced)
    with pytest.raises(AssertionError):
        check_masking_equivalence("fastv", rows=1, **LAYER)


def test_padding_is_visible_while_decoding(monkeypatch):
    def all_visible(valid, grown):
        return valid.new_ones(len(valid), valid.shape[1] + grown)

    monkeypatch.setattr(runtime, "extended", all_visible)
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
    inner = runtime.Runtime._begin_decode

    def short(self, named, cache):
        named["position_ids"] = torch.tensor([[cache.get_seq_length()]])
        inner(self, named, cache)
        return (), named

    monkeypatch.setattr(runtime.Runtime, "_begin_decode", short)
    with pytest.raises(AssertionError):
        check_masking_equivalence("l2norm", rows=1, **TOKEN)
