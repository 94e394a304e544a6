"""Attention read-outs: a few query rows or sums over them, recomputed from queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor


def row_attention(query: Tensor, keys: Tensor, scaling: float, visible: Tensor) -> Tensor:
    """Post-softmax attention of one query position, in float32.

    Args:
        query: ``[H, dh]``; keys: ``[H_kv, n, dh]``; visible: bool ``[n]``.

    Returns:
        ``[H, n]``; grouped keys are matched to their query heads without being copied.
    """
    groups = keys.shape[0]
    grouped = query.float().reshape(groups, -1, query.shape[-1])
    logits = (grouped @ keys.float().mT).reshape(query.shape[0], -1) * scaling
    return logits.masked_fill(~visible, float("-inf")).softmax(dim=-1)


def rows_attention(
    q: Tensor, k: Tensor, scaling: float, visible: Tensor, rows: Tensor
) -> Tensor:
    """Post-softmax causal attention ``[H, R, n]`` of some query positions, in float32.

    Args:
        q: ``[H, n, dh]``; k: ``[H_kv, n, dh]``; visible: bool ``[n]``; rows: ``[R]``.
    """
    repeat = q.shape[0] // k.shape[0]
    query = q[:, rows].float().reshape(k.shape[0], repeat * len(rows), -1)
    logits = (query @ k.float().mT * scaling).reshape(q.shape[0], len(rows), -1)
    hidden = (torch.arange(k.shape[1], device=k.device) > rows[:, None]) | ~visible
    return logits.masked_fill(hidden, float("-inf")).softmax(dim=-1)


def cls_rows(q: Tensor, k: Tensor, scaling: float) -> Tensor:
    """Attention ``[B, H, n]`` of the first query (CLS) of an encoder layer, float32."""
    return (q[:, :, :1].float() @ k.float().mT * scaling).softmax(dim=-1).squeeze(2)


def cls_full_width(q: Tensor, k: Tensor) -> Tensor:
    """Attention ``[B, n]`` of the first query with all heads as one, as wide as the encoder."""
    keys = k.transpose(1, 2).flatten(2).float()
    query = q[:, :, 0].flatten(1).float()
    return (keys @ query[:, :, None]).squeeze(2).mul(keys.shape[-1] ** -0.5).softmax(dim=-1)


def received_attention(q: Tensor, k: Tensor, scaling: float, tile: int = 512) -> Tensor:
    """Attention ``[B, n]`` each token receives, mean over heads and queries, tile by tile.

    Args:
        q, k: ``[B, H, n, dh]`` of bidirectional attention within one image.
    """
    keys = k.float()
    total = torch.zeros(k.shape[0], k.shape[2], device=k.device)
    for query in q.split(tile, dim=2):
        weights = (query.float() @ keys.mT * scaling).softmax(dim=-1)
        total += weights.mean(1).sum(1)
    return total / q.shape[2]


def head_max_columns(
    q: Tensor, k: Tensor, scaling: float, visible: Tensor, rows: Tensor, columns: Tensor,
    tile: int = 512,
) -> Tensor:
    """Column sums of the head-wise maximum of causal attention, without an ``[H, n, n]`` tensor.

    ``sum over i in rows of max over h of P[h, i, j]`` for j in ``columns``, tile by tile over the
    rows: the softmax denominator of a row needs all keys, the maximum only the columns.

    Args:
        q: ``[H, n, dh]``; k: ``[H_kv, n, dh]``; visible: bool ``[n]``; rows, columns: int64.

    Returns:
        float32 ``[len(columns)]``.
    """
    repeat = q.shape[0] // k.shape[0]
    keys = k.float()
    position = torch.arange(k.shape[1], device=k.device)
    total = torch.zeros(len(columns), device=k.device)
    for part in rows.split(tile):
        query = q[:, part].float().reshape(k.shape[0], repeat * len(part), -1)
        logits = (query @ keys.mT * scaling).reshape(q.shape[0], len(part), -1)
        hidden = (position > part[:, None]) | ~visible
        logits = logits.masked_fill(hidden, float("-inf"))
        lse = logits.logsumexp(-1, keepdim=True)
        total += (logits[..., columns] - lse).exp().amax(0).sum(0)
    return total
