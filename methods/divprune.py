"""DivPrune: the set of tokens whose members are farthest apart stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vtprune.methods import ops
from vtprune.methods.base import SelectionShape, TokenMethod, View
from vtprune.methods.registry import register


def farthest_points(distance: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Greedy max-min selection from ``distance [N, N]``.

    Starts with the token farthest from its nearest neighbour, then always takes the one farthest
    from all taken so far. Every token's distance to the selection is a running minimum, so a pick
    costs one row instead of all rows picked before it.

    Returns:
        The ``k`` tokens in order, and at each pick its distance to the selection (the first: to
        its nearest other token).
    """
    # Tiny steps that depend on each other: a CPU is faster at them than kernel launches.
    distance = distance.cpu()
    others = distance.clone().fill_diagonal_(torch.inf)
    nearest = others.amin(dim=0)
    order, gap = torch.empty(k, dtype=torch.long), torch.empty(k, dtype=distance.dtype)
    for step in range(k):
        order[step] = chosen = int(nearest.argmax())
        gap[step] = nearest[chosen]
        if step == 0:
            nearest = distance[chosen].clone()
        else:
            torch.minimum(nearest, distance[chosen], out=nearest)
        nearest[order[: step + 1]] = -torch.inf
    return order, gap


@register("divprune")
@dataclass(frozen=True, kw_only=True)
class DivPrune(TokenMethod):
    """Keep tokens by farthest-point sampling under the cosine distance.

    Source: "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models"
    (arXiv 2503.02175). As in the release all tokens of an image, row-end tokens included, compete
    in one graph, and counts round half to even. Deviations: distances in float32 (in bfloat16 two
    thirds of the kept tokens change); a running minimum instead of the minimum over all picks so
    far; any number of images and any prompt.
    """

    scope: Literal["per_view", "joint", "per_tile"] = "joint"
    newline: Literal["keep", "drop", "candidate"] = "candidate"
    positions: Literal["original", "compact"] = "compact"
    rounding: Literal["floor", "round_half_even", "int_raw"] = "round_half_even"

    title = "DivPrune"
    paper = "arXiv:2503.02175"

    def select(self, view: View, k: int) -> Tensor:
        order, _ = farthest_points(1 - ops.cosine_graph(view.features), k)
        return order.to(view.features.device)

    def cost(self, shape: SelectionShape) -> int:
        """All pairs of cosines; the picks only take minima."""
        return sum(ops.cosine_pairs(n) for n in shape.views) * shape.width
