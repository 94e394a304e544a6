"""What a layer method may read about one row; the recipes are ``signals.language_recipes``."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtprune.models.errors import PruningUnsupported
from vtprune.models.families import Family
from vtprune.models.signals import Heard, asked


@dataclass
class RowReading:
    """One row of the batch in front of the layer that drops tokens.

    Attributes:
        layer: the layer at whose input tokens are dropped.
        hidden: ``[n, d]`` states entering it; valid: bool ``[n]``; mine: ``[V]`` visual slots;
            text: ``[Q]`` slots of the text after the first picture of the prompt.
        tapped: queries ``[H, n, dh]``, keys and values ``[H_kv, n, dh]`` and logit scale of the
            layer before.
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
    text: Tensor
    tapped: Heard | None
    rotation: tuple[Tensor, Tensor]
    positions: Tensor
    embeddings: Tensor | None
    image_columns: Tensor
    text_columns: Tensor

    def signal(self, name: str) -> Tensor:
        """The signal called ``name``, computed when asked for.

        Raises:
            PruningUnsupported: unknown name, or attention that was not observed.
        """
        return asked(name, "language").signal.recipe(self)

    @property
    def tap(self) -> Heard:
        """The attention of the layer before."""
        if self.tapped is None:
            raise PruningUnsupported("the attention of the layer before was not observed")
        return self.tapped

    @property
    def entered(self) -> Tensor:
        """``[m, d]`` what entered the first layer."""
        if self.embeddings is None:
            raise PruningUnsupported("input embeddings were not kept: name them in `needs`")
        return self.embeddings
