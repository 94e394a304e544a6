"""One defect a recipe, and in the way from what is heard to tokens: signal equality turns red."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.mutation.tools import Defects, assert_noticed
from tests.selection_tools import Batch
from tests.test_signal_equality import check_encoder, check_layers, encoder_names
from vtprune.models.families import llava, qwen2_vl
from vtprune.models.signals import attention, hearing, language_recipes, tap

Make = Callable[[Any], Any]

#: recipe -> what stands in its place
ENCODER: list[tuple[str, str, Make]] = [
    ("cls_attention", "of a neighbouring token",
     lambda inner: lambda h: inner(h).roll(1, dims=1)),
    ("cls_attention", "heads in another order",
     lambda inner: lambda h: inner(h).flip(-1)),
    ("cls_attention", "not scaled",
     lambda inner: lambda h: inner(h._replace(scaling=1.0))),
    ("received_attention", "given instead of received",
     lambda inner: lambda h: inner(h._replace(q=h.k, k=h.q))),
    ("received_attention", "of one head",
     lambda inner: lambda h: inner(h._replace(q=h.q[:, :1], k=h.k[:, :1]))),
    ("received_attention", "without the first query",
     lambda inner: lambda h: inner(h._replace(q=h.q[:, :, 1:]))),
    ("vision_keys", "queries", lambda inner: lambda h: inner(h._replace(k=h.q))),
    ("vision_keys", "of the first head", lambda inner: lambda h: h.k[:, 0]),
    ("vision_values", "keys", lambda inner: lambda h: inner(h._replace(v=h.k))),
    ("last_attention", "heads not joined",
     lambda inner: lambda h: attention.cls_rows(h.q, h.k, h.scaling).mean(1)),
    ("last_keys", "heads interleaved",
     lambda inner: lambda h: inner(h).unflatten(-1, (h.k.shape[1], -1)).mT.flatten(-2)),
    ("last_keys", "queries", lambda inner: lambda h: inner(h._replace(k=h.q))),
    ("encoder_states", "of a neighbour", lambda inner: lambda x: x.roll(1, dims=1)),
    ("vision_features", "of a neighbour", lambda inner: lambda x: x.roll(1, dims=1)),
    ("tile_features", "of a neighbour", lambda inner: lambda x: x.roll(1, dims=1)),
]  # fmt: skip

LANGUAGE: list[tuple[str, str, Make]] = [
    ("last_row", "heads in another order", lambda inner: lambda r: inner(r).flip(0)),
    ("next_row", "of the layer before",
     lambda inner: lambda r: language_recipes._row(r, r.tap)),
    ("text_rows", "rows in another order", lambda inner: lambda r: inner(r).flip(1)),
    ("cross", "mean over heads",
     lambda inner: lambda r: attention.rows_attention(
         r.tap.q, r.tap.k, r.tap.scaling, r.valid, r.text)[:, :, r.mine].mean(0).sum(0)),
    ("self", "sum, not mean", lambda inner: lambda r: inner(r) * len(r.mine)),
    ("self", "of the text", lambda inner: lambda r: attention.head_max_columns(
        r.tap.q, r.tap.k, r.tap.scaling, r.valid, r.text, r.mine) / len(r.text)),
    ("hidden", "of a neighbour", lambda inner: lambda r: r.hidden[r.mine - 1]),
    ("normed", "not normed", lambda inner: lambda r: r.hidden[r.mine]),
    ("text_normed", "not normed", lambda inner: lambda r: r.hidden[r.text]),
    ("keys", "queries", lambda inner: lambda r: r.tap.q[::2, r.mine].transpose(0, 1)),
    ("keys", "not rotated", lambda inner: lambda r: _unrotated(r)[:, r.mine].transpose(0, 1)),
    ("text_keys", "values", lambda inner: lambda r: r.tap.v[:, r.text].transpose(0, 1)),
    ("values", "keys", lambda inner: lambda r: r.tap.k[:, r.mine].transpose(0, 1)),
    ("text_distance", "counted in slots",
     lambda inner: lambda r: r.text[:, None] - r.mine[None]),
    ("text_distance", "negated", lambda inner: lambda r: -inner(r)),
    ("image_embeddings", "those alive", lambda inner: lambda r: r.entered[r.mine]),
    ("text_embeddings", "in another order", lambda inner: lambda r: inner(r).flip(0)),
]  # fmt: skip


def _unrotated(row: Any) -> torch.Tensor:
    cos, sin = row.rotation
    k = row.tap.k
    a, b = (-sin * k).chunk(2, -1)
    return k * cos + torch.cat([-b, a], -1)


def named(cases: list[tuple[str, str, Make]]) -> dict[str, Any]:
    return {"argvalues": cases, "ids": [f"{name}: {what}" for name, what, _ in cases]}


@pytest.mark.parametrize(("name", "what", "make"), **named(ENCODER))
def test_a_wrong_recipe_of_the_encoder_is_noticed(monkeypatch, name, what, make):
    family = "qwen2_5_vl" if what == "of a neighbour" else "llava_next"
    batch = Batch(family)
    assert_noticed(
        monkeypatch,
        lambda put: put.recipe("encoder", name, make),
        lambda: check_encoder(batch, [name]),
    )


@pytest.mark.parametrize(("name", "what", "make"), **named(LANGUAGE))
def test_a_wrong_recipe_of_the_language_model_is_noticed(monkeypatch, name, what, make):
    assert_noticed(
        monkeypatch,
        lambda put: put.recipe("language", name, make),
        lambda: check_layers(Batch("llava_next"), "original"),
    )


# --- from what is heard to tokens ---------------------------------------------------------------


def passing(change: Make) -> Make:
    return lambda inner: lambda *args, **kw: change(inner(*args, **kw))


def one_layer_early(put: Defects) -> None:
    put.swap(llava.Llava, "feature_layer", passing(lambda layer: layer - 1))


def every_layer_one_early(put: Defects) -> None:
    def early(inner):
        def tap_of(family, one):
            return inner(family, dataclasses.replace(one, layer=max(0, (one.layer or 1) - 1)))

        return tap_of

    put.swap(hearing, "tap_of", early)


def states_that_enter_a_layer(put: Defects) -> None:
    def entering(inner):
        return lambda capture, name, module, args, out: inner(capture, name, module, args, args[0])

    put.swap(hearing, "_remember_states", entering)


def cls_cut_at_the_wrong_end(put: Defects) -> None:
    def other(inner):
        def per_token(self, picture, source, values):
            return inner(self, picture, source, [v.roll(1, dims=1) for v in values])

        return per_token

    put.swap(llava.Llava, "per_token", other)


def crops_of_the_first_picture(put: Defects) -> None:
    def first(inner):
        def own(self, picture, source, values):
            width = picture.place.stop - picture.place.start
            return inner(self, dataclasses.replace(picture, place=slice(0, width)), source, values)

        return own

    put.swap(llava.Llava, "own", first)


def window_order_left(put: Defects) -> None:
    put.swap(qwen2_vl.Qwen25VL, "window_order", lambda inner: lambda self, grids: None)


def window_order_turned(put: Defects) -> None:
    put.swap(qwen2_vl.Qwen25VL, "window_order", passing(torch.argsort))


def first_patch_of_a_token(put: Defects) -> None:
    def first(inner):
        def per_token(self, picture, source, values):
            if source != "projector_out":
                n = self.merged
                values = [v[:, ::n].repeat_interleave(n, 1) for v in values]
            return inner(self, picture, source, values)

        return per_token

    put.swap(qwen2_vl.Qwen2VL, "per_token", first)


def frames_of_the_first_picture(put: Defects) -> None:
    def first(inner):
        def own(self, picture, source, values):
            if source != "attention":  # a wrong segment is refused
                stop = picture.place.stop - picture.place.start
                picture = dataclasses.replace(picture, place=slice(0, stop))
            return inner(self, picture, source, values)

        return own

    put.swap(qwen2_vl.Qwen2VL, "own", first)


def segments_cut_elsewhere(put: Defects) -> None:
    """Pictures in one call: a few patches of the next one belong to each of them."""

    def moved(inner):
        def segments(heard, cuts):
            if cuts is not None:
                q, k = (x.roll(-4, dims=2) for x in (heard.q, heard.k))
                heard = heard._replace(q=q, k=k)
            return inner(heard, cuts)

        return segments

    put.swap(tap, "segments", moved)


def heads_of_another_group(put: Defects) -> None:
    put.swap(
        language_recipes,
        "row_attention",
        lambda inner: lambda q, *rest: inner(
            q.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1), *rest
        ),
    )


def text_attends_to_what_follows(put: Defects) -> None:
    def late(inner):
        return lambda q, k, s, visible, rows: inner(q, k, s, visible, rows * 0 + k.shape[1] - 1)

    put.swap(language_recipes, "rows_attention", late)


def no_layer_norm_in_front(put: Defects) -> None:
    def bare(inner):
        def next_row(row):
            norm = row.family.layers[row.layer].input_layernorm
            norm.forward = lambda x: x
            try:
                return inner(row)
            finally:
                del norm.forward

        return next_row

    put.recipe("language", "next_row", bare)


def encoder(family: str, kernel: str = "sdpa") -> Callable[[], None]:
    return lambda: check_encoder(Batch(family, kernel), encoder_names(family))


def layers(family: str) -> Callable[[], None]:
    return lambda: check_layers(Batch(family), "original")


CASES: list[tuple[Callable[[Defects], None], Callable[[], None]]] = [
    (one_layer_early, encoder("llava")),
    (every_layer_one_early, encoder("qwen2_vl")),
    (states_that_enter_a_layer, encoder("llava")),
    (states_that_enter_a_layer, encoder("qwen2_vl")),
    (cls_cut_at_the_wrong_end, encoder("llava")),
    (crops_of_the_first_picture, encoder("llava_next")),
    (crops_of_the_first_picture, encoder("llava_onevision")),
    (window_order_left, encoder("qwen2_5_vl")),
    (window_order_turned, encoder("qwen2_5_vl")),
    (first_patch_of_a_token, encoder("qwen2_vl")),
    (frames_of_the_first_picture, encoder("qwen2_vl")),
    (segments_cut_elsewhere, encoder("qwen2_vl", "segmented")),
    (heads_of_another_group, layers("llava")),
    (text_attends_to_what_follows, layers("llava")),
    (no_layer_norm_in_front, layers("qwen2_5_vl")),
]


@pytest.mark.parametrize(
    ("defect", "equality"), CASES, ids=[f"{d.__name__}-{i}" for i, (d, _) in enumerate(CASES)]
)
def test_signal_equality_notices(monkeypatch, defect, equality):
    assert_noticed(monkeypatch, defect, equality)


def test_every_recipe_was_broken_once():
    from vtprune.models import signals

    broken = {name for name, _, _ in ENCODER}
    assert broken | {"fg_mask", "clip_similarity", "merge_slots"} == set(
        signals.available("encoder")
    )
    assert {name for name, _, _ in LANGUAGE} == set(signals.available("language"))
