"""PruMerge: attended tokens stay and take up a little of what resembles them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vtprune.methods import ops
from vtprune.methods.base import Selection, SelectionShape, View, choice, in_range
from vtprune.methods.crops import MergingCropMethod
from vtprune.methods.registry import register


def full_width_attention(query: Tensor, keys: Tensor) -> Tensor:
    """``[N]`` attention of CLS over ``keys [N + 1, C]``, one head as wide as the encoder.

    The first key is CLS itself; its share is computed and left out.
    """
    return (keys @ query * keys.shape[-1] ** -0.5).softmax(dim=-1)[1:]


def outlier_count(attention: Tensor) -> int:
    """Tokens whose attention lies above the third quartile by 1.5 quartile distances."""
    low, high = torch.quantile(attention, torch.tensor([0.25, 0.75], dtype=attention.dtype))
    return int((attention > high + 1.5 * (high - low)).sum())


def with_stride(chosen: Tensor, n: int, stride: int) -> Tensor:
    """``chosen`` followed by every ``stride``-th token that is not chosen already.

    As in the release, the last token is never sampled.
    """
    grid = torch.arange(0, n - 1, stride, device=chosen.device)
    return torch.cat([chosen, grid[~torch.isin(grid, chosen)]])


def neighbours(keys: Tensor, chosen: Tensor, count: int) -> Tensor:
    """``[k, count]`` most similar other tokens of each chosen one, kept ones included."""
    u = ops.unit(keys)
    similarity = u[chosen] @ u.mT
    similarity.scatter_(1, chosen[:, None], -torch.inf)
    return ops.top_k(similarity, min(count, len(keys) - 1))


def absorb(x: Tensor, attention: Tensor, chosen: Tensor, nearest: Tensor) -> Tensor:
    """``[k + 1, d]``: each chosen token plus its neighbours, and all others as one residual token.

    Neighbours and residual are weighted by attention, without normalisation, as released.
    """
    weighted = x * attention[:, None]
    merged = x[chosen] + weighted[nearest].sum(dim=1)
    rest = torch.ones(len(x), dtype=torch.bool, device=x.device)
    rest[chosen] = False
    return torch.cat([merged, weighted[rest].sum(dim=0, keepdim=True)])


@register("prumerge")
@dataclass(frozen=True, kw_only=True)
class PruMerge(MergingCropMethod):
    """Keep the tokens with most CLS attention, add neighbours to each, and one residual token.

    Source: "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models"
    (arXiv 2403.15388). As in the release sums are not normalised, neighbours may be kept tokens,
    and tokens come by falling attention, the residual last. Deviation: the number of tokens
    follows the ratio instead of the outliers of the attention (:func:`outlier_count`).

    Attributes:
        source: ``last_layer`` = queries and keys of the encoder's last layer, one head as wide as
            the encoder (signals ``last_attention [N]``, ``last_keys [N, C]``), as released;
            ``feature_layer`` = attention (``score_source``) and features of the layer the
            projector reads.
        n_neighbours: tokens added to each kept one.
        order: ``attention`` as released, or ``raster``.
        anyres, score_source, merge_space: see :class:`methods.crops.MergingCropMethod`.
    """

    rounding: Literal["floor", "round_half_even", "int_raw"] = "round_half_even"
    source: Literal["last_layer", "feature_layer"] = "last_layer"
    n_neighbours: int = 32
    order: Literal["attention", "raster"] = "attention"

    title = "PruMerge"
    paper = "arXiv:2403.15388"
    example: ClassVar[Mapping[str, Any]] = {"ratio": 0.5, "n_neighbours": 8}
    without_cls: ClassVar[Mapping[str, str]] = {
        "score_source": "received",
        "source": "feature_layer",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self, "source", ("last_layer", "feature_layer"))
        choice(self, "order", ("attention", "raster"))
        in_range(self, "n_neighbours", 1, whole=True)

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        tile = ("tile_features",) if self.scope == "per_tile" else ()
        if self.source == "feature_layer":
            return super().needs
        return ("vision_features", "last_attention", "last_keys", *tile)

    def choose(self, attention: Tensor, k: int) -> Tensor:
        """The ``k`` tokens that stay apart from the residual, in order."""
        return ops.top_k(attention, k)

    def select(self, view: View, k: int) -> Selection:
        if self.source == "last_layer":
            attention, keys = view.signal("last_attention"), view.signal("last_keys")
        else:
            attention, keys = self.attention(view), view.signal("vision_features")
        chosen = self.choose(attention, max(1, k - 1))
        x = self.tokens(view)
        merged = absorb(x, attention, chosen, neighbours(keys, chosen, self.n_neighbours))
        rows = self.finish(view, merged)[:k]
        # The residual has no place of its own: it takes the last one that is free.
        free = torch.ones(len(view), dtype=torch.bool, device=x.device)
        free[chosen] = False
        places = torch.cat([chosen, torch.nonzero(free).squeeze(1)[-1:]])[:k]
        if self.order == "raster":
            places, order = torch.sort(places)
            return Selection(places, rows[order])
        return Selection(places.sort().values, rows)

    def cost(self, shape: SelectionShape) -> int:
        """The encoder's attention, cosines of the kept tokens with all, projections."""
        apart = [max(1, self.count(n) - 1) for n in self.graphs(shape)]
        pairs = sum(k * n for k, n in zip(apart, self.graphs(shape), strict=True))
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

    Attributes:
        attended_share: share of the tokens chosen by attention.
    """

    attended_share: float = 0.25

    title = "PruMerge+"

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "attended_share", 0.0, 1.0)

    def choose(self, attention: Tensor, k: int) -> Tensor:
        chosen = ops.top_k(attention, min(k, max(1, round(k * self.attended_share))))
        free = torch.ones(len(attention), dtype=torch.bool, device=attention.device)
        free[chosen] = False
        rest = torch.nonzero(free).squeeze(1)
        return torch.cat(
            [chosen, rest[ops.even_places(len(rest), k - len(chosen)).to(rest.device)]]
        )
