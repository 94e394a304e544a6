"""Recipes of the language model's signals, for one row in front of the layer that drops.

``mine`` are the ``V`` visual slots alive, ``text`` the ``Q`` slots of the text after the image, and
the attention heard is that of the layer before.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vtprune.models import cache as kv
from vtprune.models.signals.attention import head_max_columns, row_attention, rows_attention
from vtprune.models.signals.registry import language
from vtprune.models.signals.tap import AttentionTap, Heard

if TYPE_CHECKING:
    from vtprune.models.layer_signals import RowReading


class _Known(Exception):
    """Raised when queries and keys are known and nothing further need be computed."""


@language("hidden", hears="states")
def _hidden(row: RowReading) -> Tensor:
    """``[V, d]`` states entering the layer."""
    return row.hidden[row.mine]


@language("normed", hears="states")
def _normed(row: RowReading) -> Tensor:
    """``[V, d]`` the same after the model's final norm."""
    return row.family.language_model.norm(row.hidden[row.mine])


@language("text_normed", hears="states")
def _text_normed(row: RowReading) -> Tensor:
    """``[Q, d]`` states of the text after the image, after the model's final norm."""
    return row.family.language_model.norm(row.hidden[row.text])


@language("keys", hears="attention")
def _keys(row: RowReading) -> Tensor:
    """``[V, H_kv, dh]`` keys, rotated."""
    return row.tap.k[:, row.mine].transpose(0, 1)


@language("text_keys", hears="attention")
def _text_keys(row: RowReading) -> Tensor:
    """``[Q, H_kv, dh]`` keys of the text after the image, rotated."""
    return row.tap.k[:, row.text].transpose(0, 1)


@language("values", hears="attention")
def _values(row: RowReading) -> Tensor:
    """``[V, H_kv, dh]`` values."""
    return row.tap.v[:, row.mine].transpose(0, 1)


@language("last_row", hears="attention")
def _last_row(row: RowReading) -> Tensor:
    """``[H, V]`` attention of the last prompt token."""
    return _row(row, row.tap)


def _row(row: RowReading, heard: Heard) -> Tensor:
    # Rows that end before others have padding behind them. No number leaves the device here.
    column = torch.arange(len(row.valid), device=row.valid.device)
    last = torch.where(row.valid, column, -1).amax()
    query = heard.q.index_select(1, last[None])[:, 0]
    seen = row.valid & (column <= last)
    return row_attention(query, heard.k, heard.scaling, seen)[:, row.mine]


@language("next_row", hears="states")
def _next_row(row: RowReading) -> Tensor:
    """``[H, V]`` the same in the layer to come, whose projections are computed for it."""
    layer, heard = row.family.layers[row.layer], []

    def listen(one: Heard) -> None:
        heard.append(one.row(0))
        raise _Known

    cos, sin = row.rotation
    with AttentionTap({layer.self_attn: listen}, {row.family.kernel}):
        with contextlib.suppress(_Known):
            layer.self_attn(
                hidden_states=layer.input_layernorm(row.hidden[None]),
                position_embeddings=(cos[None], sin[None]),
                attention_mask=None,
                **{kv.ARGUMENT: None},
            )
    return _row(row, heard[0])


@language("text_rows", hears="attention")
def _text_rows(row: RowReading) -> Tensor:
    """``[H, Q, V]`` attention of the text after the image."""
    q, k, _, scaling = row.tap
    return rows_attention(q, k, scaling, row.valid, row.text)[:, :, row.mine]


@language("cross", hears="attention")
def _cross(row: RowReading) -> Tensor:
    """``[V]`` head-wise maximum of attention, summed over the text after the image."""
    q, k, _, scaling = row.tap
    return head_max_columns(q, k, scaling, row.valid, row.text, row.mine)


@language("self", hears="attention")
def _self(row: RowReading) -> Tensor:
    """``[V]`` the same, mean over the visual tokens alive."""
    q, k, _, scaling = row.tap
    total = head_max_columns(q, k, scaling, row.valid, row.mine, row.mine)
    return total / len(row.mine)


@language("text_distance", hears="states")
def _text_distance(row: RowReading) -> Tensor:
    """``[Q, V]`` position of a text token minus that of a visual one."""
    return row.positions[row.text][:, None] - row.positions[row.mine][None]


@language("image_embeddings", hears="entry")
def _image_embeddings(row: RowReading) -> Tensor:
    """``[n_visual, d]`` all visual tokens as they entered the first layer."""
    return row.entered[row.image_columns]


@language("text_embeddings", hears="entry")
def _text_embeddings(row: RowReading) -> Tensor:
    """``[Q, d]`` the text after the image as it entered the first layer."""
    return row.entered[row.text_columns]
