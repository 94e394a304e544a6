"""VisPruner: the tokens the encoder attends to, and diverse ones among the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtprune.methods import ops
from vtprune.methods.cost import SelectionShape
from vtprune.methods.crops import CropMethod
from vtprune.methods.diverse import important_and_diverse
from vtprune.methods.options import option
from vtprune.methods.registry import register
from vtprune.methods.views import View


@register("vispruner")
@dataclass(frozen=True, kw_only=True)
class VisPruner(CropMethod):
    """Keep the tokens with most CLS attention, and from the rest those that duplicate least.

    Works on each encoder crop apart, on the layer the projector reads, before the projector.
    Source: "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in
    VLMs" (arXiv 2412.01818).

    Deviations: selection in float32 whatever the model's dtype (half precision decides other
    pairs in the first rounds and ends with a set that shares 56-92 % only); an odd number of
    remaining tokens works as the rule says (the later release fails); only the CLS row of one
    layer is computed; one Gram matrix serves all rounds.
    """

    important_ratio: float = option(
        0.5, "share of the kept tokens that is chosen by attention", low=0, high=1
    )
    prune_per_round: int = option(8, "most tokens removed per round of the diverse part", low=1)

    title = "VisPruner"
    paper = "arXiv:2412.01818"

    def select(self, view: View, k: int) -> Tensor:
        return self.select_all([view], [k])[0]

    def select_all(self, views: list[View], counts: list[int]) -> list[Tensor]:
        """Crops of one size together: rounds are many and tiny, a batch costs as much as one."""
        if len({(len(view), k) for view, k in zip(views, counts, strict=True)}) > 1:
            return [self.select(view, k) for view, k in zip(views, counts, strict=True)]
        features = torch.stack([view.signal("vision_features") for view in views])
        attention = torch.stack([self.attention(view) for view in views])
        parts = important_and_diverse(
            features, attention, counts[0], self.important_ratio, self.prune_per_round
        )
        return list(torch.cat(parts, dim=1))

    def cost(self, shape: SelectionShape) -> int:
        """The encoder's attention, and per crop the Gram matrix of what is not important."""
        rest = [n - int(self.count(n) * self.important_ratio) for n in self.sizes(shape)]
        gram = sum(ops.cosine_pairs(n) for n in rest) * shape.vision_width
        return shape.encoder_attention(self.attention_signal) + gram
