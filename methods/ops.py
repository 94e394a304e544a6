"""Tensor functions shared by methods. Pure, vectorised, ties to the lower index."""

from __future__ import annotations

import torch
from torch import Tensor


def top_k(score: Tensor, k: int) -> Tensor:
    """Indices ``[..., k]`` of the largest scores, best first; equal scores: lower index first.

    ``torch.topk`` leaves the order of ties open, a stable sort does not.
    """
    return torch.sort(score, dim=-1, descending=True, stable=True).indices[..., :k]


def unit(x: Tensor) -> Tensor:
    """Rows of ``x [..., d]`` divided by their l2 norm; zero rows stay zero."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.where(norm > 0, x / norm.clamp(min=torch.finfo(x.dtype).tiny), x)


def cosine_graph(x: Tensor) -> Tensor:
    """Cosine similarities ``[N, N]`` of the rows of ``x [N, d]``."""
    u = unit(x)
    return u @ u.mT


def is_half(x: Tensor) -> bool:
    """Whether ``x`` is in half precision (float16 or bfloat16)."""
    return x.dtype in (torch.float16, torch.bfloat16)
