"""What a layer method may read about one row, computed when it is asked for."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vtprune.models.errors import PruningUnsupported
from vtprune.models.families import Family
from vtprune.models.signals import AttentionTap, head_max_columns, row_attention, rows_attention


class _Heard(Exception):
    """Raised when queries and keys are known and nothing further need be computed."""


@dataclass
class RowReading:
    """One row of the batch in front of the layer that drops tokens.

    Attributes:
        layer: the layer at whose input tokens are dropped.
        hidden: ``[n, d]`` states entering it; valid: bool ``[n]``; mine: ``[V]`` visual slots.
        tapped: queries ``[H, n, dh]``, keys ``[H_kv, n, dh]`` and logit scale of the layer before.
        rotation: cos and sin ``[n, dh]`` of the slots.
        positions: ``[n]`` position ids of the slots.
        embeddings: ``[m, d]`` what entered the first layer; image_columns, text_columns: where in
            it the visual tokens and the text after the image are.
    """

    family: Family
    layer: int
    hidden: Tensor
    valid: Tensor
    mine: Tensor
    tapped: tuple[Tensor, Tensor, float] | None
    rotation: tuple[Tensor, Tensor]
    positions: Tensor
    embeddings: Tensor | None
    image_columns: Tensor
    text_columns: Tensor

    def signal(self, name: str) -> Tensor:
        """The signal called ``name``; see the methods of this class.

        Raises:
            PruningUnsupported: unknown name, or attention that was not observed.
        """
        reader = getattr(self, f"_{name}", None)
        if reader is None:
            raise PruningUnsupported(f"unknown layer signal '{name}'")
        return reader()

    @cached_property
    def text(self) -> Tensor:
        """``[Q]`` slots of the text after the (first) image."""
        rows = self.valid.clone()
        rows[self.mine] = False
        rows[: int(self.mine[0])] = False
        return torch.nonzero(rows).squeeze(1)

    @property
    def _tap(self) -> tuple[Tensor, Tensor, float]:
        if self.tapped is None:
            raise PruningUnsupported("the attention of the layer before was not observed")
        return self.tapped

    def _hidden(self) -> Tensor:
        """``[V, d]``."""
        return self.hidden[self.mine]

    def _normed(self) -> Tensor:
        """``[V, d]`` after the model's final norm."""
        return self.family.language_model.norm(self.hidden[self.mine])

    def _text_normed(self) -> Tensor:
        """``[Q, d]`` text after the image, after the model's final norm."""
        return self.family.language_model.norm(self.hidden[self.text])

    def _keys(self) -> Tensor:
        """``[V, H_kv, dh]`` keys of the layer before."""
        return self._tap[1][:, self.mine].transpose(0, 1)

    def _text_keys(self) -> Tensor:
        """``[Q, H_kv, dh]``."""
        return self._tap[1][:, self.text].transpose(0, 1)

    def _last_row(self) -> Tensor:
        """``[H, V]`` attention of the last prompt token in the layer before."""
        q, k, scaling = self._tap
        return self._row(q, k, scaling)

    def _row(self, q: Tensor, k: Tensor, scaling: float) -> Tensor:
        last = int(torch.nonzero(self.valid).max())
        column = torch.arange(len(self.valid), device=self.valid.device)
        return row_attention(q[:, last], k, scaling, self.valid & (column <= last))[:, self.mine]

    def _next_row(self) -> Tensor:
        """``[H, V]`` the same in the layer to come, whose projections are computed for it."""
        layer, heard = self.family.layers[self.layer], []

        def listen(q: Tensor, k: Tensor, scaling: float) -> None:
            heard.append((q[0], k[0], scaling))
            raise _Heard

        cos, sin = self.rotation
        with AttentionTap({layer.self_attn: listen}, {self.family.kernel}):
            with contextlib.suppress(_Heard):
                layer.self_attn(
                    hidden_states=layer.input_layernorm(self.hidden[None]),
                    position_embeddings=(cos[None], sin[None]),
                    attention_mask=None,
                    past_key_values=None,
                )
        return self._row(*heard[0])

    def _text_rows(self) -> Tensor:
        """``[H, Q, V]`` attention of the text after the image in the layer before."""
        q, k, scaling = self._tap
        return rows_attention(q, k, scaling, self.valid, self.text)[:, :, self.mine]

    def _cross(self) -> Tensor:
        """``[V]`` head-wise maximum of attention, summed over the text after the image."""
        q, k, scaling = self._tap
        return head_max_columns(q, k, scaling, self.valid, self.text, self.mine)

    def _self(self) -> Tensor:
        """``[V]`` the same, mean over the visual tokens alive."""
        q, k, scaling = self._tap
        total = head_max_columns(q, k, scaling, self.valid, self.mine, self.mine)
        return total / len(self.mine)

    def _text_distance(self) -> Tensor:
        """``[Q, V]`` position of a text token minus that of a visual one."""
        return self.positions[self.text][:, None] - self.positions[self.mine][None]

    def _image_embeddings(self) -> Tensor:
        """``[n_visual, d]`` all visual tokens as they entered the first layer."""
        return self._entered[self.image_columns]

    def _text_embeddings(self) -> Tensor:
        """``[Q, d]`` the text after the image as it entered the first layer."""
        return self._entered[self.text_columns]

    @property
    def _entered(self) -> Tensor:
        if self.embeddings is None:
            raise PruningUnsupported("input embeddings were not kept: name them in `needs`")
        return self.embeddings
