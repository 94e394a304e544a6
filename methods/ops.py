"""Tensor functions shared by methods. Pure, vectorised, ties to the lower index."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor


class Merged(NamedTuple):
    """The list after merging: ``features [n, d]``, ``size [n]``, for every original token its
    place in the list ``group [N]``, and for every place its original token ``representative [n]``.
    """

    features: Tensor
    size: Tensor
    group: Tensor
    representative: Tensor


def top_k(score: Tensor, k: int) -> Tensor:
    """Indices ``[..., k]`` of the largest scores, best first; equal scores: lower index first.

    ``torch.topk`` leaves the order of ties open, a stable sort does not.
    """
    return torch.sort(score, dim=-1, descending=True, stable=True).indices[..., :k]


def unit(x: Tensor) -> Tensor:
    """Rows of ``x [..., d]`` divided by their l2 norm; zero rows stay zero."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.where(norm > 0, x / norm.clamp(min=torch.finfo(x.dtype).tiny), x)


def cosine_graph(x: Tensor, blocks: int = 8) -> Tensor:
    """Cosine similarities ``[..., N, N]`` of the rows of ``x [..., N, d]``, exactly symmetric.

    Of large matrices only the upper triangle is multiplied out, in ``blocks`` bands, and mirrored:
    9/16 of the work.
    """
    u = unit(x)
    n = u.shape[-2]
    if n < 64 * blocks:
        return u @ u.mT
    graph, step = u.new_empty(*u.shape[:-1], n), -(-n // blocks)
    for start in range(0, n, step):
        band = u[..., start : start + step, :] @ u[..., start:, :].mT
        graph[..., start : start + step, start:] = band
        graph[..., start:, start : start + step] = band.mT
    return graph


def cosine_pairs(n: int, blocks: int = 8) -> int:
    """Products of rows that :func:`cosine_graph` of ``n`` rows computes."""
    if n < 64 * blocks:
        return n * n
    step = -(-n // blocks)
    return sum(min(step, n - start) * (n - start) for start in range(0, n, step))


def is_half(x: Tensor) -> bool:
    """Whether ``x`` is in half precision (float16 or bfloat16)."""
    return x.dtype in (torch.float16, torch.bfloat16)


def seeded_uniform(n: int, *key: object) -> Tensor:
    """Numbers ``[n]`` in [0, 1) that depend on ``key`` alone, not on order or device of use."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.rand(n, generator=generator)


def best_pairs(similarity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's best column, best rows first: the matching step of ToMe and VisPruner.

    Args:
        similarity: ``[..., a, b]``.

    Returns:
        best similarities ``[..., a]`` in falling order (equal ones: lower row first), the rows
        they belong to, and each one's column (equal ones: the lowest).
    """
    best, column = similarity.max(dim=-1)
    best, row = torch.sort(best, dim=-1, descending=True, stable=True)
    return best, row, column.gather(-1, row)


def even_places(n: int, k: int) -> Tensor:
    """``k`` distinct places ``[k]`` spread evenly over ``n``, half a step from both ends."""
    return (torch.arange(k) * 2 + 1) * n // (2 * max(1, k))


class Groups:
    """Tokens sorted into ``n`` groups by ``group [N]``.

    Sums run over the sorted tokens, in a fixed order: a scatter-add on a GPU would not repeat.
    """

    def __init__(self, group: Tensor, n: int) -> None:
        self.order = torch.argsort(group, stable=True)
        # bincount would ask the device for its length.
        self.sizes = group.new_zeros(n).index_add_(0, group, torch.ones_like(group))

    def sum(self, values: Tensor) -> Tensor:
        """Sums ``[n, ...]`` over the groups of ``values [N, ...]``; empty ones give 0.

        Half precision is summed in float32: adding up a hundred tokens would lose their last bits.
        """
        sorted_ = values[self.order]
        wide = sorted_.float() if is_half(values) else sorted_
        sums = torch.segment_reduce(
            wide, "sum", lengths=self.sizes, axis=0, initial=0.0, unsafe=True
        )
        return sums.to(values.dtype)


def others(n: int, chosen: Tensor) -> Tensor:
    """The places of ``n`` that are not in ``chosen [k]``, in order."""
    taken = torch.zeros(n, dtype=torch.bool, device=chosen.device)
    taken[chosen] = True
    # A stable sort of the mask instead of a search: the number of places is known beforehand.
    return torch.sort(taken, stable=True).indices[: n - len(chosen)]
