"""Flash attention as the library sees it, on a CPU: a third kernel for the tests.

A tower of native resolution hands the kernels of that kind all pictures in one call, one behind
another, and says by ``cu_seq_lens_q`` where each begins; a language model gives them a mask of two
dimensions, or none. The name holds "flash", which is all the library asks before it does so.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

NAME = "segmented_flash"

#: calls with several segments so far; a test of segments must see it grow
calls = 0


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention of every segment alone; ``[B, H, n, dh]`` in, ``[B, n, H, dh]`` out."""
    global calls
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, dim=1), value.repeat_interleave(repeat, dim=1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if cu_seq_lens_q is not None:
        cuts = cu_seq_lens_q.tolist()
        calls += len(cuts) > 2
        parts = [
            (query[:, :, a:b] @ key[:, :, a:b].mT * scale).softmax(-1) @ value[:, :, a:b]
            for a, b in itertools.pairwise(cuts)
        ]
        return torch.cat(parts, dim=2).transpose(1, 2), None
    logits = query @ key.mT * scale
    causal = module.is_causal if is_causal is None else is_causal
    visible = _visible(attention_mask, query.shape[2], key.shape[2], bool(causal))
    if visible is not None:
        logits = logits.masked_fill(~visible, float("-inf"))
    # A padding query sees nothing; flash attention leaves it out, which is a zero here.
    weights = logits.softmax(-1).nan_to_num(0.0)
    return (weights @ value).transpose(1, 2), None


def _visible(mask: Tensor | None, n: int, m: int, causal: bool) -> Tensor | None:
    if mask is not None and mask.dim() == 4:  # the oracle's
        return mask
    visible = torch.ones(n, m, dtype=torch.bool)
    if causal:
        visible = visible.tril(m - n)
    if mask is None:
        return visible if causal else None
    return visible & mask[:, None, None, :].bool()


def register() -> None:
    """Put it into the library's tables."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, flash_attention_mask)


def use(model: nn.Module) -> None:
    """Every part of ``model`` attends by it from now on."""
    register()
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation"):
            config._attn_implementation = NAME
