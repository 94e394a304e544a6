"""PruMerge: attended tokens stay and take up a little of what resembles them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vtprune.methods import ops
from vtprune.methods.cost import SelectionShape
from vtprune.methods.counts import Rounding
from vtprune.methods.crops import MergingCropMethod
from vtprune.methods.merging import absorb, neighbours
from vtprune.methods.options import option
from vtprune.methods.registry import register
from vtprune.methods.views import Selection, View


@register("prumerge")
@dataclass(frozen=True, kw_only=True)
class PruMerge(MergingCropMethod):
    """Keep the tokens with most CLS attention, add neighbours to each, and one residual token.

    Source: "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models"
    (arXiv 2403.15388). As in the release sums are not normalised, neighbours may be kept tokens,
    and tokens come by falling attention, the residual last. Deviation: the number of tokens
    follows the ratio instead of the outliers of the attention.

    ``source=last_layer``, as released: queries and keys of the encoder's last layer, one head as
    wide as the encoder (signals ``last_attention [N]``, ``last_keys [N, C]``);
    ``feature_layer``: attention (``score_source``) and features of the layer the projector reads.
    """

    rounding: Rounding = "round_half_even"
    source: Literal["last_layer", "feature_layer"] = option(
        "last_layer", "attention and keys: last_layer, one wide head, as released | feature_layer"
    )
    n_neighbours: int = option(32, "tokens added to each kept one", low=1)
    order: Literal["attention", "raster"] = option(
        "attention", "of the kept tokens: attention, as released | raster"
    )

    title = "PruMerge"
    paper = "arXiv:2403.15388"
    example: ClassVar[Mapping[str, Any]] = {"ratio": 0.5, "n_neighbours": 8}
    without_cls: ClassVar[Mapping[str, Any]] = {
        "score_source": "received",
        "source": "feature_layer",
    }

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        if self.source == "feature_layer":
            return super().needs
        return ("vision_features", "last_attention", "last_keys", *self.tiles)

    def choose(self, attention: Tensor, k: int) -> Tensor:
        """The ``k`` tokens that stay apart from the residual, in order."""
        return ops.top_k(attention, k)

    def select(self, view: View, k: int) -> Selection:
        if self.source == "last_layer":
            attention, keys = view.signal("last_attention"), view.signal("last_keys")
        else:
            attention, keys = self.attention(view), view.signal("vision_features")
        chosen = self.choose(attention, max(1, k - 1))
        merged = absorb(
            self.tokens(view), attention, chosen, neighbours(keys, chosen, self.n_neighbours)
        )
        rows = self.finish(view, merged)[:k]
        # The residual has no place of its own: it takes the last one that is free.
        places = torch.cat([chosen, ops.others(len(view), chosen)[-1:]])[:k]
        return Selection(places if self.order == "raster" else places.sort().values, rows)

    def cost(self, shape: SelectionShape) -> int:
        """The encoder's attention, cosines of the kept tokens with all, projections."""
        apart = [max(1, self.count(n) - 1) for n in self.sizes(shape)]
        pairs = sum(k * n for k, n in zip(apart, self.sizes(shape), strict=True))
        name = "cls_attention" if self.source == "last_layer" else self.attention_signal
        total = shape.encoder_attention(name) + pairs * shape.vision_width
        return total + self.projection(shape, sum(apart) + len(apart))


@register("prumerge_plus")
@dataclass(frozen=True, kw_only=True)
class PruMergePlus(PruMerge):
    """PruMerge with evenly spaced tokens added to the attended ones.

    Source: as ``prumerge`` (arXiv 2403.15388); the release's default. How papers that report it at
    a fixed budget split that is not said; here a quarter goes by attention, the rest is spread
    evenly over the tokens not chosen.
    """

    attended_share: float = option(
        0.25, "share of the tokens chosen by attention; the rest is spread evenly", low=0, high=1
    )

    title = "PruMerge+"

    def choose(self, attention: Tensor, k: int) -> Tensor:
        chosen = ops.top_k(attention, min(k, max(1, round(k * self.attended_share))))
        rest = ops.others(len(attention), chosen)
        even = ops.even_places(len(rest), k - len(chosen)).to(rest.device)
        return torch.cat([chosen, rest[even]])
