"""Defects between model and method: the wrong tensor, layer, order or slot.

Masking equivalence is blind to all of them. Each sits in the product's runtime, families or
signals, and selection equality must turn red.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import test_selection_equality
from tests.method_tools import built
from tests.mutation.tools import Defects, assert_noticed
from tests.selection_tools import Batch, check
from tests.test_text_tower import save_clip
from vtprune.methods import LayerMethod, Selection, TokenLayout, TokenMethod, View
from vtprune.models import enter, layers
from vtprune.models.encoder_merge import EncoderMerging
from vtprune.models.families import llava, llava_next, qwen2_vl
from vtprune.models.layer_signals import RowReading
from vtprune.models.signals import encoder_recipes, hearing, language_recipes, tap

Defect = Callable[[Defects], None]


def passing(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A replacement that gives ``change`` of what the original gives."""
    return lambda inner: lambda *args, **kw: change(inner(*args, **kw))


# --- attention and keys inside the language model -----------------------------------------------


def wrong_head_group(put: Defects) -> None:
    """Query heads meet the keys of another group."""
    put.swap(
        language_recipes,
        "row_attention",
        lambda inner: lambda q, *rest: inner(q.reshape(2, -1, q.shape[-1]).transpose(0, 1).reshape(
            q.shape), *rest),
    )  # fmt: skip


def wrong_head_group_of_text_rows(put: Defects) -> None:
    put.swap(language_recipes, "rows_attention", lambda inner: lambda q, *rest: inner(
        q.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1), *rest))  # fmt: skip


def heads_not_maximised(put: Defects) -> None:
    def mean(q, k, scaling, visible, rows, columns):
        full = language_recipes.rows_attention(q, k, scaling, visible, rows)
        return full.mean(0)[:, columns].sum(0)

    put.swap(language_recipes, "head_max_columns", lambda inner: mean)


def no_layer_norm_in_front(put: Defects) -> None:
    def bare(inner):
        def next_row(self: RowReading) -> Tensor:
            norm = self.family.layers[self.layer].input_layernorm
            norm.forward = lambda x: x
            try:
                return inner(self)
            finally:
                del norm.forward

        return next_row

    put.recipe("language", "next_row", bare)


def states_not_normed(put: Defects) -> None:
    put.recipe("language", "normed", lambda inner: lambda row: row.hidden[row.mine])


def text_states_not_normed(put: Defects) -> None:
    put.recipe("language", "text_normed", lambda inner: lambda row: row.hidden[row.text])


def keys_of_the_first_tokens(put: Defects) -> None:
    put.recipe("language", "keys", passing(lambda keys: keys.flip(0)))


def distances_without_gaps(put: Defects) -> None:
    put.recipe(
        "language",
        "text_distance",
        lambda inner: lambda self: inner(self) - inner(self).min(dim=0).values + 1,
    )


def text_of_the_whole_prompt(put: Defects) -> None:
    """The text before the picture gives pivots, too."""

    def everything(choosing: layers.Choosing) -> layers.Choosing:
        choosing.text = choosing.prompts.valid & ~choosing.prompts.visual
        choosing.n_text = choosing.text.sum(1).tolist()
        return choosing

    put.swap(layers.Layers, "plan", passing(everything))


def merged_states_reversed(put: Defects) -> None:
    def flipped(picked: Selection) -> Selection:
        return picked if picked.features is None else Selection(picked.indices,
                                                                picked.features.flip(0))

    put.swap(LayerMethod, "checked_select", passing(flipped))


# --- the encoder --------------------------------------------------------------------------------


def prumerge_reads_another_layer(put: Defects) -> None:
    def first(inner):
        return lambda family, one: inner(family, dataclasses.replace(one, layer=0))

    put.swap(hearing, "tap_of", first)


def heads_unjoined(put: Defects) -> None:
    put.swap(
        encoder_recipes,
        "cls_full_width",
        lambda inner: lambda q, k: encoder_recipes.cls_rows(q, k, q.shape[-1] ** -0.5).mean(1),
    )


def queries_for_keys(put: Defects) -> None:
    put.recipe("encoder", "vision_keys", lambda inner: lambda heard: heard.q.mean(1))


def one_layer_early(put: Defects) -> None:
    put.swap(llava.Llava, "feature_layer", passing(lambda layer: layer - 1))


def cls_column_kept(put: Defects) -> None:
    """Every patch reads its neighbour's attention."""
    put.swap(encoder_recipes, "cls_rows", passing(lambda rows: rows.roll(1, dims=-1)))


def attention_given_for_received(put: Defects) -> None:
    put.swap(encoder_recipes, "received_attention", lambda inner: lambda q, k, s: inner(k, q, s))


def window_order_left(put: Defects) -> None:
    put.swap(qwen2_vl.Qwen25VL, "window_order", lambda inner: lambda self, grids: None)


def segments_in_another_order(put: Defects) -> None:
    put.swap(tap, "segments", passing(lambda heard: heard[::-1]))


def last_crop_only(put: Defects) -> None:
    put.swap(llava.Llava, "per_token", passing(lambda x: x[-1:].expand_as(x)))


def crops_in_another_order(put: Defects) -> None:
    put.swap(llava.Llava, "per_token", passing(lambda x: torch.cat([x[:1], x[1:].flip(0)])))


def tokens_marked_with_other_crops(put: Defects) -> None:
    def mixed(layout: TokenLayout) -> TokenLayout:
        canvas = layout.tile > 0
        tile = torch.where(canvas, layout.n_tiles - layout.tile, layout.tile)
        return dataclasses.replace(layout, tile=tile)

    put.swap(llava_next, "anyres_layout", passing(mixed))


def views_divided_elsewhere(put: Defects) -> None:
    def moved(layout: TokenLayout) -> TokenLayout:
        return dataclasses.replace(layout, view=layout.view.roll(-8).clamp(max=1))

    put.swap(llava_next, "anyres_layout", passing(moved))


def mosaic_crop_by_crop(put: Defects) -> None:
    put.swap(
        TokenLayout,
        "mosaic_rank",
        passing(lambda rank: torch.arange(rank.numel()).reshape(rank.shape)),
    )


# --- slots --------------------------------------------------------------------------------------


def merged_rows_reversed(put: Defects) -> None:
    def flipped(picked: Selection) -> Selection:
        return picked if picked.features is None else Selection(picked.indices,
                                                                picked.features.flip(0))

    put.swap(TokenMethod, "keep", passing(flipped))


def views_in_wrong_slots(put: Defects) -> None:
    def turned(view: View) -> View:
        view.index = view.index.flip(0)
        return view

    put.swap(TokenMethod, "_view", passing(turned))


def first_mask_for_every_picture(put: Defects) -> None:
    first: dict[int, Selection] = {}

    def same(inner):
        return lambda self, image: first.setdefault(len(image.layout), inner(self, image))

    put.swap(TokenMethod, "keep", same)


def pictures_of_a_row_exchanged(put: Defects) -> None:
    put.swap(
        enter, "images_per_row", passing(lambda rows: [list(reversed(row)) for row in rows])
    )


def every_row_draws_as_the_first(put: Defects) -> None:
    def first(inner):
        def choose(self, prompts, *rest):
            names, prompts.names = prompts.names, prompts.names[:1] * len(prompts.names)
            try:
                return inner(self, prompts, *rest)
            finally:
                prompts.names = names

        return choose

    put.swap(enter.Entry, "_choose_row", first)


# --- merging in the tower, and the question -----------------------------------------------------


def queries_merge_in_the_tower(put: Defects) -> None:
    def other(inner):
        return lambda self, heard: inner(self, heard._replace(k=heard.q))

    put.swap(EncoderMerging, "_hear", other)


def sizes_forgotten_in_the_tower(put: Defects) -> None:
    def plain(found):
        (hidden, mask), rest = found
        return (hidden, torch.zeros_like(mask)), rest

    put.swap(EncoderMerging, "_before", passing(lambda x: x if x is None else plain(x)))


def merged_rows_in_another_crop(put: Defects) -> None:
    def crossed(inner):
        return lambda self, module, args, output: inner(self, module, args, output.flip(0))

    put.swap(EncoderMerging, "_put_back", crossed)


def question_of_the_first_row(put: Defects) -> None:
    put.swap(
        enter.Entry, "_question", lambda inner: lambda self, prompts, row: inner(self, prompts, 0)
    )


def option(name: str, family: str = "llava", **options: object) -> Callable[[], None]:
    return lambda: check(family, built(name, family, **options))


CASES: list[tuple[Defect, Callable[[], None]]] = [
    (wrong_head_group, option("fastv")),
    (wrong_head_group, option("pyramiddrop")),
    (wrong_head_group_of_text_rows, option("sparsevlm")),
    (heads_not_maximised, option("fitprune")),
    (no_layer_norm_in_front, option("pyramiddrop")),
    (states_not_normed, option("dart")),
    (text_states_not_normed, option("dart")),
    (keys_of_the_first_tokens, option("dart")),
    (distances_without_gaps, option("sparsevlm_plus", heads=2)),
    (text_of_the_whole_prompt, option("dart")),
    (merged_states_reversed, option("sparsevlm")),
    (prumerge_reads_another_layer, option("prumerge")),
    (heads_unjoined, option("prumerge")),
    (queries_for_keys, option("visionzip")),
    (one_layer_early, option("fastervlm")),
    (cls_column_kept, option("vispruner")),
    (attention_given_for_received, option("fastervlm", score_source="received")),
    (window_order_left, option("vispruner", "qwen2_5_vl")),
    (
        segments_in_another_order,
        lambda: check(Batch("qwen2_vl", "segmented"), built("vispruner", "qwen2_vl")),
    ),
    (last_crop_only, option("fastervlm", "llava_next")),
    (crops_in_another_order, option("vispruner", "llava_next")),
    (tokens_marked_with_other_crops, option("fastervlm", "llava_next", anyres="unpad")),
    (views_divided_elsewhere, option("l2norm", "llava_next")),
    (mosaic_crop_by_crop, option("fastervlm", "llava_next")),
    (views_in_wrong_slots, option("l2norm", "llava_next")),
    (merged_rows_reversed, option("visionzip")),
    (merged_rows_reversed, option("prumerge")),
    (first_mask_for_every_picture, option("l2norm")),
    (pictures_of_a_row_exchanged, option("fastervlm")),
    (every_row_draws_as_the_first, option("random")),
]


def tower(family: str) -> Callable[[], None]:
    by_hand = test_selection_equality.test_tome_in_the_tower_merges_what_a_tower_run_by_hand_merges
    return lambda: by_hand(family, {"ratio": 0.5})


CASES += [
    (queries_merge_in_the_tower, tower("llava")),
    (sizes_forgotten_in_the_tower, tower("llava")),
    (merged_rows_in_another_crop, tower("llava_next")),
]


@pytest.mark.parametrize(
    ("defect", "equality"), CASES, ids=[f"{d.__name__}-{i}" for i, (d, _) in enumerate(CASES)]
)
def test_selection_equality_notices(
    defect: Defect, equality: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_noticed(monkeypatch, defect, equality)


def test_another_rows_question_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = save_clip(tmp_path)
    check = test_selection_equality.test_cdpruner_reads_each_rows_own_question
    assert_noticed(monkeypatch, question_of_the_first_row, lambda: check(clip, "llava", {}))
