"""Ragged rows as rectangles: pack the tokens that stay against the right edge.

Right alignment keeps the last prompt token in the last column of every row, so ``logits[:, -1]``
and decoding mean the same before and after pruning.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pack_left(keep: Tensor, width: int | None = None) -> tuple[Tensor, Tensor]:
    """Order that moves kept tokens to the right, padding slots to the left.

    Args:
        keep: bool ``[B, N]``.
        width: largest number of kept tokens in a row, where it is known: a device is not asked.

    Returns:
        ``order`` int64 ``[B, M]`` with M the largest row count, and ``valid`` bool ``[B, M]``;
        ``x.gather(1, order)`` holds the kept tokens in their original order where ``valid``.
    """
    if width is None:
        width = int(keep.sum(1).max())
    order = torch.argsort(keep.to(torch.int8), dim=1, stable=True)[:, keep.shape[1] - width :]
    return order, keep.gather(1, order)


def places(mask: Tensor, count: int) -> Tensor:
    """int64 ``[count]`` places of True in ``mask [n]``, ascending; the device is not asked."""
    return torch.argsort(mask.to(torch.int8), descending=True, stable=True)[:count]


def gather_rows(x: Tensor, order: Tensor) -> Tensor:
    """``x [B, N, d]`` picked by ``order [B, M]`` along the token dimension."""
    return x.gather(1, order.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def attention_mask(
    valid: Tensor, n_query: int, kernel: str, dtype: torch.dtype, full: bool | None = None
) -> Tensor | None:
    """Causal mask over keys ``valid [B, kv]`` for the last ``n_query`` positions.

    The format is the attention kernel's: bool ``[B, 1, q, kv]`` for ``sdpa`` (None where its own
    causal path says the same), additive for ``eager``, 2-D ``[B, kv]`` for flash attention.

    Args:
        full: all keys are valid, where that is known; None: ask the device.
    """
    n_key = valid.shape[1]
    if full is None:
        full = bool(valid.all())
    if full and unmasked(n_query, n_key, kernel):
        return None
    if "flash" in kernel:
        return valid.long()
    # The last position sees all that is valid.
    visible = valid[:, None, None, :] if n_query == 1 else _causal(valid, n_query)
    if kernel == "eager":
        return torch.zeros(visible.shape, dtype=dtype, device=valid.device).masked_fill(
            ~visible, torch.finfo(dtype).min
        )
    return visible


def _causal(valid: Tensor, n_query: int) -> Tensor:
    """bool ``[B, 1, n_query, kv]`` keys that the last ``n_query`` positions see."""
    n_key = valid.shape[1]
    query = torch.arange(n_key - n_query, n_key, device=valid.device).unsqueeze(1)
    key = torch.arange(n_key, device=valid.device).unsqueeze(0)
    # A padding query sees itself: a row without any visible key is NaN in some kernels.
    return ((key <= query) & valid[:, None, None, :]) | (key == query)


def unmasked(n_query: int, n_key: int, kernel: str) -> bool:
    """With all keys valid the kernel needs no mask: its own causal path says the same."""
    return "flash" in kernel or n_query == 1 or (kernel == "sdpa" and n_query == n_key)
