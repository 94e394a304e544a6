"""HoloV: every part of the image keeps its share of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vtprune.methods import ops
from vtprune.methods.cost import SelectionShape
from vtprune.methods.counts import Rounding
from vtprune.methods.crops import CropMethod
from vtprune.methods.options import option
from vtprune.methods.registry import register
from vtprune.methods.tokens import Padding, Scope
from vtprune.methods.views import Selection, View


def part_sizes(n: int, parts: int) -> list[int]:
    """Sizes of ``parts`` contiguous parts of ``n`` tokens; the first ones take the remainder."""
    return [n // parts + (p < n % parts) for p in range(parts)]


def part_weights(score: Tensor, sizes: list[int]) -> Tensor:
    """Share ``[P]`` of each part: its mean ``score [N]`` over the sum of means."""
    mean = torch.stack([part.mean() for part in score.split(sizes)])
    return mean / mean.sum()


def quotas(weights: Tensor, k: int) -> Tensor:
    """Whole tokens per part ``[P]``, summing to ``k``: shares rounded down, rest to the largest."""
    quota = (weights.double() * k).floor().long()
    quota[ops.top_k(weights, k - int(quota.sum()))] += 1
    return quota


def capped(quota: Tensor, weights: Tensor, sizes: list[int]) -> Tensor:
    """Quotas within the sizes; what does not fit goes to parts with room, by weight times room."""
    size = torch.tensor(sizes, device=quota.device)
    total, quota = int(quota.sum()), quota.minimum(size)
    while (surplus := total - int(quota.sum())) > 0:
        room = size - quota
        share = weights * room
        share = share / share.sum() if share.sum() > 0 else room / room.sum()
        extra = (share * surplus).floor().long().minimum(room)
        left = surplus - int(extra.sum())
        open_parts = ops.top_k(share.masked_fill(extra == room, -1), left)
        extra[open_parts[extra[open_parts] < room[open_parts]]] += 1
        quota = quota + extra
    return quota


def released_selection(attention: Tensor, k: int, parts: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the release keeps of ``attention [N]``: positions ``[k]``, quotas, part weights.

    Part by part by falling attention, a part kept in full in raster order; where quotas exceed
    parts, -1 at the end stands for a zero vector. The release also computes how similarities vary
    within a part and rescales them to the part's mean attention, by which they cancel.
    """
    sizes = part_sizes(len(attention), parts)
    weights = part_weights(attention, sizes)
    quota, start, kept = quotas(weights, k), 0, []
    for size, count in zip(sizes, quota.tolist(), strict=True):
        order = ops.top_k(attention[start : start + size], count)
        kept.append(start + (order.sort().values if count >= size else order))
        start += size
    kept = torch.cat(kept)
    padding = kept.new_full((k - len(kept),), -1)
    return torch.cat([kept, padding]), quota, weights


def holistic_score(x: Tensor, attention: Tensor, sizes: list[int]) -> Tensor:
    """The paper's score ``[N]``: attention plus, on its scale, how a token's similarities vary."""
    scores = []
    for tokens, a in zip(x.split(sizes), attention.split(sizes), strict=True):
        variance = ops.cosine_graph(tokens).var(dim=1, unbiased=False)
        scale = a.abs().mean() / variance.abs().mean().clamp(min=torch.finfo(x.dtype).tiny)
        scores.append(variance * scale + a)
    return torch.cat(scores)


@register("holov")
@dataclass(frozen=True, kw_only=True)
class HoloV(CropMethod):
    """Split the tokens into contiguous parts and keep of each as many as its attention is worth.

    Source: "Don't Just Chase Highlighted Tokens in MLLMs: Revisiting Visual Holistic Context
    Retention" (arXiv 2510.02912). The release differs from its paper, hence ``variant``: its
    similarity term cancels, it emits zero vectors where a part is worth more than it holds, and
    within a part tokens come by attention instead of by place. The paper's re-injection of pruned
    tokens in a middle layer is not in the release, and not here. As in the
    release all crops form one list (``scope=joint``) without row-end tokens and padding.
    """

    scope: Scope = "joint"
    padding: Padding = "drop"
    rounding: Rounding = "round_half_even"
    parts: int = option(16, "contiguous parts of the raster list", low=1)
    variant: Literal["released", "clean", "paper"] = option(
        "released",
        "released (overflow = zero vectors) | clean = overflow to other parts, in order of "
        "position | paper = clean with the paper's score",
    )
    tau: float = option(1.0, "exponent of a part's mean score (paper)", low=0)

    title = "HoloV"
    paper = "arXiv:2510.02912"

    def select(self, view: View, k: int) -> Tensor | Selection:
        attention, parts = self.attention(view), min(self.parts, len(view))
        if self.variant == "released":
            return self._released(view, attention, k, parts)
        sizes, score = part_sizes(len(view), parts), attention
        if self.variant == "paper":
            score = holistic_score(view.features, attention, sizes)
        weights = part_weights(score, sizes)
        if self.variant == "paper":
            mean = torch.stack([part.mean() for part in score.split(sizes)]) ** self.tau
            weights = mean / mean.sum()
        quota = capped(quotas(weights, k), weights, sizes)
        starts = [sum(sizes[:p]) for p in range(parts)]
        picks = zip(starts, score.split(sizes), quota.tolist(), strict=True)
        return torch.cat([start + ops.top_k(part, count) for start, part, count in picks])

    @staticmethod
    def _released(view: View, attention: Tensor, k: int, parts: int) -> Selection:
        listed, _, _ = released_selection(attention, k, parts)
        real = listed >= 0
        free = torch.ones(len(view), dtype=torch.bool, device=listed.device)
        free[listed[real]] = False
        # Zero vectors take the places of the first tokens dropped; the list fills all places.
        places = torch.cat([listed[real], torch.nonzero(free).squeeze(1)[: int((~real).sum())]])
        rows = view.features[listed.clamp(min=0)].masked_fill(~real[:, None], 0)
        return Selection(places.sort().values, rows)

    def cost(self, shape: SelectionShape) -> int:
        """The encoder's attention; ``paper`` adds the cosines within parts."""
        row = shape.encoder_attention(self.attention_signal)
        if self.variant != "paper":
            return row
        return row + sum(n * n * shape.width // min(self.parts, n) for n in shape.views)
