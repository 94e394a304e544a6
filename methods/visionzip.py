"""VisionZip: attended tokens stay, the rest is merged into a few evenly spaced ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from vtprune.methods import ops
from vtprune.methods.cost import SelectionShape
from vtprune.methods.counts import Rounding
from vtprune.methods.crops import MergingCropMethod
from vtprune.methods.merging import contextual_features, contextual_tokens
from vtprune.methods.options import option
from vtprune.methods.registry import register
from vtprune.methods.views import Selection, View


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
    """

    rounding: Rounding = "round_half_even"
    dominant_share: float = option(
        27 / 32, "share of the kept tokens that is chosen by attention; published 54 of 64",
        low=0, high=1,
    )  # fmt: skip
    metric: Literal["keys", "features"] = option(
        "keys", "what similarity compares: keys = attention keys of the encoder | features"
    )

    title = "VisionZip"
    paper = "arXiv:2412.04467"

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
        for n in self.sizes(shape):
            contextual = self.count(n) - round(self.count(n) * self.dominant_share)
            pairs += (n - self.count(n)) * contextual
            targets += contextual
        compared = shape.vision_head if self.metric == "keys" else shape.vision_width
        total = shape.encoder_attention(self.attention_signal) + pairs * compared
        return total + self.projection(shape, targets)
