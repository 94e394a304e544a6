"""FastV: after a few layers, drop the visual tokens to which the last prompt token is blind."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtprune.methods.cost import SelectionShape
from vtprune.methods.layers import Redeciding
from vtprune.methods.registry import register
from vtprune.methods.schedules import DropOnce
from vtprune.methods.views import LayerSignals


@register("fastv")
@dataclass(frozen=True, kw_only=True)
class FastV(DropOnce, Redeciding):
    """Drop once, at the input of layer ``K``, by the attention of the last prompt token.

    A token's score is its share of the attention of the last prompt token in layer ``K - 1``,
    softmax over all keys, mean over heads. Source: "An Image is Worth 1/2 Tokens After Layer 2"
    (arXiv 2403.06764).

    Deviations: the image span comes from the placeholders instead of a constant; the row is
    recomputed from queries and keys, so that no layer materialises its attention or runs twice.
    Releases count differently, hence ``rounding``; ports use ``K=3``. The random choice that one
    release makes for ``K=0`` is the method ``random``.

    ``ratio_mode=mean``: layers before K run in full, so ``ratio * L / (L - K)`` of the tokens is
    dropped there, and no ratio above ``1 - K / L`` exists. ``ratio_mode=local``: ``ratio`` itself
    is dropped at K, as in the paper.
    """

    title = "FastV"
    paper = "arXiv:2403.06764"
    query_aware = True

    def score(self, signals: LayerSignals) -> Tensor:
        # The mean is taken after the softmax: heads differ in their normalisers.
        return signals.signal("last_row").mean(dim=0)

    def cost(self, shape: SelectionShape) -> int:
        """One query row over all keys of layer K - 1."""
        return shape.sequence[self.K - 1] * shape.attention_width
