"""Choosing tokens that are unlike each other: what methods that look for diversity share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vtprune.methods import ops


def farthest_points(distance: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Greedy max-min selection from ``distance [N, N]``.

    Starts with the token farthest from its nearest neighbour, then always takes the one farthest
    from all taken so far. Every token's distance to the selection is a running minimum, so a pick
    costs one row instead of all rows picked before it. Nothing leaves the device.

    Returns:
        The ``k`` tokens in order, and at each pick its distance to the selection (the first: to
        its nearest other token).
    """
    nearest = distance.clone().fill_diagonal_(torch.inf).amin(dim=0)
    order, gaps = [], []
    for step in range(k):
        gap, chosen = nearest.max(dim=0, keepdim=True)
        order.append(chosen)
        gaps.append(gap)
        row = distance.index_select(0, chosen)[0]
        nearest = row.clone() if step == 0 else torch.minimum(nearest, row)
        nearest[torch.cat(order)] = -torch.inf
    return torch.cat(order), torch.cat(gaps)


def greedy_dpp(x: Tensor, relevance: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Greedy MAP of the determinantal point process with kernel ``r_i r_j cos(x_i, x_j)``.

    Once the chosen tokens span all directions nothing has variance left but rounding, which a
    release divides by; then the process starts afresh on the remaining tokens. Nothing leaves the
    device, whatever is chosen.

    Args:
        x: ``[B, N, d]``; relevance: ``[B, N]``.

    Returns:
        Chosen tokens ``[B, k]`` in order, and the gain of each, its conditional variance.
    """
    kernel = ops.cosine_graph(x) * relevance[:, None] * relevance[:, :, None]
    # A cosine with itself is 1: computed, it would decide ties of equal relevance by rounding.
    initial = relevance.square() * (torch.linalg.vector_norm(x, dim=-1) > 0)
    variance, spent_below = initial.clone(), 1e-4 * initial.amax(dim=1, keepdim=True)
    free = torch.ones_like(variance, dtype=torch.bool)
    rows = x.new_empty(len(x), k, x.shape[1])
    counted = x.new_ones(len(x), k, 1)  # 0: a row from before the last fresh start of its crop
    order, gains = [], []
    for step in range(k):
        spent = variance.amax(dim=1, keepdim=True) <= spent_below
        variance = torch.where(spent & free, initial, variance)
        counted[:, :step] *= ~spent[:, :, None]
        gain, chosen = variance.max(dim=1, keepdim=True)
        order.append(chosen)
        gains.append(gain)
        if step == k - 1:
            break  # nobody asks what the last one explains
        there = chosen[:, :, None].expand(-1, 1, x.shape[1])
        known, row = rows[:, :step], kernel.gather(1, there)[:, 0]
        own = known.gather(2, chosen[:, None].expand(-1, step, 1)) * counted[:, :step]
        row = row - (own.mT @ known)[:, 0]
        # A token without any variance (norm or relevance zero) conditions nothing.
        rows[:, step] = row * torch.where(gain > 0, gain, torch.inf).rsqrt()
        free.scatter_(1, chosen, False)
        variance = variance - rows[:, step].square()
        variance.scatter_(1, chosen, -torch.inf)
    return torch.cat(order, dim=1), torch.cat(gains, dim=1)


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


def least_similar(
    state: Tensor, pivots: Tensor, taken: Tensor, counts: Sequence[int]
) -> list[Tensor]:
    """What each pivot takes, one after another: the free tokens least similar to it.

    Args:
        state: ``[V, d]``; pivots: ``[p, d]``; taken: bool ``[V]``, not to be had.
        counts: how many each pivot takes.
    """
    similarity = (ops.unit(pivots) @ ops.unit(state).mT).masked_fill(taken, torch.inf)
    groups = []
    for row, count in zip(similarity, counts, strict=True):
        groups.append(ops.top_k(-row, count))
        similarity[:, groups[-1]] = torch.inf
    return groups
