"""FastV: after a few layers, drop the visual tokens to which the last prompt token is blind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vtprune.methods.base import LayerMethod, LayerSignals, MethodError, SelectionShape, in_range
from vtprune.methods.registry import register


@dataclass(frozen=True, kw_only=True)
class DropOnce(LayerMethod):
    """A method that drops once, at the input of layer ``K``.

    Attributes:
        K: layers that see all tokens; at least 1.
    """

    K: int = 2

    knobs: ClassVar[Mapping[str, tuple[Any, ...]]] = {"K": (1,)}

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "K", 1, whole=True)

    def max_mean_ratio(self, n_layers: int) -> float:
        """Largest mean removal over ``n_layers`` layers."""
        return max(0.0, 1 - self.K / n_layers)

    def schedule(self, n_layers: int, n_visual: int) -> tuple[int, ...]:
        if self.K >= n_layers:
            raise MethodError(
                f"{self.name}: K={self.K} must be below the {n_layers} layers of the model"
            )
        removed = self.ratio
        if self.ratio_mode == "mean":
            bound = self.max_mean_ratio(n_layers)
            if self.ratio > bound + 1e-12:
                raise MethodError(
                    f"{self.name}: a mean removal of {self.ratio:g} is impossible with K={self.K} "
                    f"of {n_layers} layers; at most {bound:.3f} (or use ratio_mode=local)"
                )
            removed = min(1.0, self.ratio / bound)
        return (n_visual,) * self.K + (self.count(n_visual, removed),) * (n_layers - self.K)


@register("fastv")
@dataclass(frozen=True, kw_only=True)
class FastV(DropOnce):
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

    Attributes:
        K: layers that see all tokens; at least 1.
        redecide: choose again at every decoding step instead of once during prefill.
    """

    redecide: bool = False

    title = "FastV"
    paper = "arXiv:2403.06764"
    query_aware = True

    def score(self, signals: LayerSignals) -> Tensor:
        # The mean is taken after the softmax: heads differ in their normalisers.
        return self._cast(signals.signal("last_row")).mean(dim=0)

    def cost(self, shape: SelectionShape) -> int:
        """One query row over all keys of layer K - 1."""
        return shape.sequence[self.K - 1] * shape.attention_width
