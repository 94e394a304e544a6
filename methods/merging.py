"""Folding tokens into others: what methods that merge have in common."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vtprune.methods import ops
from vtprune.methods.ops import Merged


def merge_rounds(n: int, n_out: int, per_round: int | None = None) -> list[int]:
    """Tokens merged away in each round on the way from ``n`` to ``n_out``.

    A round can remove half of the list at most, ``per_round`` lowers that.
    """
    rounds = []
    while n > n_out:
        rounds.append(min(n - n_out, n // 2, per_round or n))
        n -= rounds[-1]
    return rounds


def merge_tokens(
    x: Tensor, n_out: int, *, metric: Tensor | None = None, per_round: int | None = None
) -> Merged:
    """Bipartite soft matching of ``x [N, d]`` down to ``n_out`` tokens.

    Each round splits the list into even and odd places; every even token finds its most similar
    odd one (cosine of ``metric [N, c]``, by default of the tokens); the most similar pairs are
    merged into the odd token, as means weighted by how many tokens each already stands for. The
    new list holds the unmerged even tokens, most similar first, then the odd ones in order.
    """
    n, device = len(x), x.device
    merged = Merged(x, x.new_ones(n), *(torch.arange(n, device=device) for _ in range(2)))
    metric = x if metric is None else metric
    for q in merge_rounds(n, n_out, per_round):
        merged, metric = merge_round(merged, metric, q)
    return merged


def merge_round(state: Merged, metric: Tensor, q: int) -> tuple[Merged, Tensor]:
    """One round: ``q`` even places are merged into their partners among the odd places."""
    u = ops.unit(metric)
    _, row, partner = ops.best_pairs(u[0::2] @ u[1::2].mT)
    gone, kept, odd = 2 * row[:q], 2 * row[q:], torch.arange(1, len(u), 2, device=u.device)
    order = torch.cat([kept, odd])

    place = torch.empty_like(state.representative)
    place[order] = torch.arange(len(order), device=place.device)
    place[gone] = len(kept) + partner[:q]

    sums = ops.Groups(place, len(order)).sum

    def mean(values: Tensor) -> Tensor:
        return sums(values * state.size[:, None]) / size[:, None]

    size = sums(state.size)
    features = mean(state.features)
    metric = features if metric is state.features else mean(metric)
    return Merged(features, size, place[state.group], state.representative[order]), metric


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
    rest = ops.others(len(metric), dominant)
    place = torch.arange(count, device=metric.device) * max(1, len(rest) // max(1, count))
    targets = rest[place]
    sources = ops.others(len(metric), torch.cat([dominant, targets]))
    u = ops.unit(metric)
    similarity = u[sources] @ u[targets].mT
    assignment = similarity.argmax(dim=-1) if count else sources.new_empty(0)
    return Contextual(targets, sources if count else sources[:0], assignment)


def contextual_features(x: Tensor, contextual: Contextual) -> Tensor:
    """Targets ``[c, d]`` plus the mean of their sources: a sum of two terms, as released."""
    if not len(contextual.targets):
        return x[:0]
    groups = ops.Groups(contextual.assignment, len(contextual.targets))
    means = groups.sum(x[contextual.sources]) / groups.sizes.clamp(min=1)[:, None]
    return x[contextual.targets] + means


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
    rest = weighted[ops.others(len(x), chosen)]
    return torch.cat([merged, rest.sum(dim=0, keepdim=True)])


class Recycled(NamedTuple):
    """Deleted tokens ``order [q]`` that are merged, ``centres [c]`` among them, the centre each
    one joins ``assignment [q]``, and the merged tokens ``features [c, d]``."""

    order: Tensor
    centres: Tensor
    assignment: Tensor
    features: Tensor


def recycled_counts(n_deleted: int, share: float = 0.3) -> tuple[int, int]:
    """How many deleted tokens are merged, and into how many."""
    merged = min(n_deleted, int(share * n_deleted) + 1)
    return merged, merged // 10 + 1 if merged else 0


def recycle(
    hidden: Tensor, score: Tensor, deleted: Tensor, clusters: int, share: float
) -> Recycled:
    """Merge the best of the ``deleted`` tokens by density peaks of ``hidden [V, d]``.

    A token's density falls with the squared distances to its ``clusters`` nearest; centres are
    tokens dense and far from denser ones; each token joins the nearest centre.
    """
    count, _ = recycled_counts(len(deleted), share)
    order = deleted[ops.top_k(score[deleted], max(count, clusters))]
    x = hidden[order]
    y = x.float()  # in half precision too, as released
    distance = torch.cdist(y, y, compute_mode="donot_use_mm_for_euclid_dist") / x.shape[1] ** 0.5
    near = distance.sort(dim=-1).values[:, :clusters]
    density = (-near.square().mean(dim=-1)).exp()
    denser = density[None, :] > density[:, None]
    gap = distance.masked_fill(~denser, torch.inf).amin(dim=-1)
    gap = torch.where(denser.any(dim=-1), gap, distance.max())
    place = ops.top_k(gap * density, clusters)
    assignment = distance[:, place].argmin(dim=-1)
    assignment[place] = torch.arange(clusters, device=x.device)
    groups = ops.Groups(assignment, clusters)
    merged = groups.sum(y) / (groups.sizes[:, None] + 1e-6)
    return Recycled(order, order[place], assignment, merged.to(x.dtype))


def split_budget(n_visual: int, total: int, share: float = 0.3) -> tuple[int, int]:
    """Kept and merged tokens that make ``total`` of ``n_visual`` together."""
    for kept in range(total - 1, 0, -1):
        clusters = recycled_counts(n_visual - kept, share)[1]
        if kept + clusters <= total:
            return kept, total - kept
    return total, 0
