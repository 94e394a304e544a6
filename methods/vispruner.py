"""VisPruner: the tokens the encoder attends to, and diverse ones among the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtprune.methods import ops
from vtprune.methods.base import SelectionShape, View, in_range
from vtprune.methods.crops import CropMethod
from vtprune.methods.registry import register


def drop_duplicates(similarity: Tensor, keep: int, per_round: int = 8) -> Tensor:
    """Places ``[B, keep]`` left after repeatedly removing what resembles others most.

    The list starts in the order of ``similarity [B, n, n]``. Each round splits it into even and
    odd places and removes, of the even ones, up to ``per_round`` with the largest similarity to
    any odd one; the list goes on with the even ones by falling similarity, then the odd ones.
    That order decides the next split and is the order of the result.
    """
    batch, n = similarity.shape[:2]
    order = torch.arange(n, device=similarity.device).expand(batch, n)
    crop = torch.arange(batch, device=similarity.device)[:, None, None]
    while keep and order.shape[1] > keep:
        even, odd = order[:, 0::2], order[:, 1::2]
        _, row, _ = ops.best_pairs(similarity[crop, even[:, :, None], odd[:, None, :]])
        quota = min(per_round, order.shape[1] - keep)
        order = torch.cat([even.gather(1, row[:, quota:]), odd], dim=1)
    return order[:, :keep]


def important_and_diverse(
    features: Tensor, attention: Tensor, keep: int, important_ratio: float, per_round: int = 8
) -> tuple[Tensor, Tensor]:
    """The two parts that stay of each crop.

    Args:
        features: ``[B, N, C]``; attention: ``[B, N]``, larger is more important.

    Returns:
        ``[B, int(keep * important_ratio)]`` most attended tokens, best first, and the diverse
        remainder, in the order of :func:`drop_duplicates`.
    """
    ranked = torch.sort(attention, dim=-1, descending=True, stable=True).indices
    n_important = int(keep * important_ratio)
    important, rest = ranked[:, :n_important], ranked[:, n_important:]
    crop = torch.arange(len(features), device=features.device)[:, None]
    # One Gram matrix of the rest; every round only reads a block of it.
    similarity = ops.cosine_graph(features[crop, rest])
    return important, rest.gather(1, drop_duplicates(similarity, keep - n_important, per_round))


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

    Attributes:
        important_ratio: share of the kept tokens that is chosen by attention.
        prune_per_round: most tokens removed per round of the diverse part.
        anyres, score_source: see :class:`methods.crops.CropMethod`.
    """

    important_ratio: float = 0.5
    prune_per_round: int = 8

    title = "VisPruner"
    paper = "arXiv:2412.01818"

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "important_ratio", 0.0, 1.0)
        in_range(self, "prune_per_round", 1, whole=True)

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
        rest = [n - int(self.count(n) * self.important_ratio) for n in self.graphs(shape)]
        gram = sum(ops.cosine_pairs(n) for n in rest) * shape.vision_width
        return shape.encoder_attention(self.attention_signal) + gram
