"""VisionZip: attended tokens stay, the rest is merged into a few evenly spaced ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vtprune.methods import ops
from vtprune.methods.base import Selection, SelectionShape, View, choice, in_range
from vtprune.methods.crops import MergingCropMethod
from vtprune.methods.registry import register


class Contextual(NamedTuple):
    """``targets [c]`` and ``sources [m]`` in raster order, and each source's place in targets."""

    targets: Tensor
    sources: Tensor
    assignment: Tensor


def contextual_tokens(metric: Tensor, dominant: Tensor, count: int) -> Contextual:
    """Which tokens of ``metric [N, c]`` outside ``dominant`` carry the others.

    ``count`` evenly spaced tokens of the rest are targets; every other one goes to the target
    whose metric is most similar (cosine).
    """
    free = torch.ones(len(metric), dtype=torch.bool, device=metric.device)
    free[dominant] = False
    rest = torch.nonzero(free).squeeze(1)
    place = torch.arange(count, device=metric.device) * max(1, len(rest) // max(1, count))
    targets = rest[place]
    free[targets] = False
    sources = torch.nonzero(free).squeeze(1)
    u = ops.unit(metric)
    similarity = u[sources] @ u[targets].mT
    assignment = similarity.argmax(dim=-1) if count else sources.new_empty(0)
    return Contextual(targets, sources if count else sources[:0], assignment)


def contextual_features(x: Tensor, contextual: Contextual) -> Tensor:
    """Targets ``[c, d]`` plus the mean of their sources: a sum of two terms, as released."""
    by_target = torch.argsort(contextual.assignment, stable=True)
    lengths = torch.bincount(contextual.assignment, minlength=len(contextual.targets))
    if not len(lengths):
        return x[:0]
    sums = torch.segment_reduce(
        x[contextual.sources[by_target]], "sum", lengths=lengths, axis=0, initial=0.0
    )
    return x[contextual.targets] + sums / lengths.clamp(min=1)[:, None]


@register("visionzip")
@dataclass(frozen=True, kw_only=True)
class VisionZip(MergingCropMethod):
    """Keep the tokens with most CLS attention and merge the rest by the similarity of their keys.

    Source: "VisionZip: Longer is Better but Not Necessary in Vision Language Models"
    (arXiv 2412.04467). As in the release a contextual token is its target *plus* the mean of what
    is assigned to it, about twice the norm of the average that the paper describes.

    Deviations: the release also passes the CLS token to the language model and lists contextual
    tokens after all others; here CLS stays behind, its place goes to one more patch, and every
    contextual token sits where its target was (as ports to models without CLS do).

    Attributes:
        dominant_share: share of kept tokens chosen by attention; published 54 of 64.
        metric: what similarity compares: head-mean attention ``keys`` of the layer the projector
            reads (signal ``vision_keys``), or that layer's ``features``.
        anyres, score_source, merge_space: see :class:`methods.crops.MergingCropMethod`.
    """

    rounding: Literal["floor", "round_half_even", "int_raw"] = "round_half_even"
    dominant_share: float = 27 / 32
    metric: Literal["keys", "features"] = "keys"

    title = "VisionZip"
    paper = "arXiv:2412.04467"

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "dominant_share", 0.0, 1.0)
        choice(self, "metric", ("keys", "features"))

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*super().needs, *(("vision_keys",) if self.metric == "keys" else ()))

    def select(self, view: View, k: int) -> Selection:
        dominant = ops.top_k(self.attention(view), round(k * self.dominant_share))
        name = "vision_keys" if self.metric == "keys" else "vision_features"
        count = min(k - len(dominant), len(view) - len(dominant))
        contextual = contextual_tokens(view.signal(name), dominant, count)
        x = self.tokens(view)
        merged = self.finish(view, contextual_features(x, contextual))
        kept = torch.cat([view.features[dominant], merged.to(view.features.dtype)])
        indices, order = torch.sort(torch.cat([dominant, contextual.targets]))
        return Selection(indices, kept[order])

    def cost(self, shape: SelectionShape) -> int:
        """The encoder's attention, cosines of the removed tokens with the targets, projections."""
        pairs = targets = 0
        for n in self.graphs(shape):
            contextual = self.count(n) - round(self.count(n) * self.dominant_share)
            pairs += (n - self.count(n)) * contextual
            targets += contextual
        compared = shape.vision_head if self.metric == "keys" else shape.vision_width
        total = shape.encoder_attention(self.attention_signal) + pairs * compared
        return total + self.projection(shape, targets)
