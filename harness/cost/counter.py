"""What torch itself counts: the check of the ledger, on tensors or on the meta device.

``torch.utils.flop_counter`` knows neither the fused attention kernel of the CPU nor matrix-vector
products and would count them as nothing; both are added here. It counts two per multiply-add, and
attention over the full square.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def _attention(q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **kw: Any) -> int:
    batch, heads, queries, width = q
    return 2 * 2 * batch * heads * queries * k[2] * width


def _matrix_vector(m: Any, v: Any, *args: Any, out_shape: Any = None, **kw: Any) -> int:
    return 2 * m[0] * m[1]


def _distances(x: Any, y: Any, *args: Any, out_shape: Any = None, **kw: Any) -> int:
    return 2 * x[-2] * y[-2] * x[-1]


MAPPING = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten.mv: _matrix_vector,
    torch.ops.aten._cdist_forward: _distances,
}


_ATTENTION = re.compile(r"scaled_dot_product|\.(baddbmm|bmm)$")


class Counter(FlopCounterMode):
    """Counts inside ``with``; may be entered again and then goes on counting."""

    def __init__(self) -> None:
        super().__init__(display=False, custom_mapping=MAPPING)
        self._before = 0

    def __enter__(self) -> Counter:
        self._before = self.macs
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._total = self._before + self.get_total_flops() // 2

    @property
    def macs(self) -> int:
        """Multiply-accumulates counted so far."""
        return getattr(self, "_total", 0)

    @property
    def attention(self) -> int:
        """Multiply-accumulates of attention, in the last block.

        That is the fused kernels, and the batched products that stand for them on the meta device.
        """
        counted = self.get_flop_counts().get("Global", {})
        return sum(n for op, n in counted.items() if _ATTENTION.search(str(op))) // 2

    def of(self, module: str) -> int:
        """Multiply-accumulates inside the module of that dotted name, in the last block."""
        return sum(self.get_flop_counts().get(module, {}).values()) // 2


@dataclass(frozen=True)
class Counted:
    """MACs by stage, and those of them that attention spends."""

    macs: Mapping[str, int]
    attention: Mapping[str, int]


def count_skeleton(
    model: nn.Module, inputs: Mapping[str, Any] | None, record: Any
) -> Counted:
    """MACs by stage of one image's prefill on the meta device, each layer on its own tokens.

    Args:
        model: on the meta device.
        inputs: of the image encoder, see :func:`.shapes.encoder_inputs`; None for no image.
        record: tells how many tokens enter each layer.
    """
    from vtprune.models.families import family_of

    family, encoder, llm, head = family_of(model), Counter(), Counter(), Counter()
    projector, inside = family.projector(), []
    hooks = [
        projector.register_forward_pre_hook(lambda *_: inside.append(encoder_total(encoder))),
        projector.register_forward_hook(lambda *_: inside.append(encoder_total(encoder))),
    ]
    with torch.no_grad():
        with encoder:
            if inputs is not None:
                family.encode(inputs)
        for hook in hooks:
            hook.remove()
        with llm:
            _through_layers(family, record.tokens_per_layer)
        with head:
            text = model.config.get_text_config()
            model.lm_head(torch.empty(1, 1, text.hidden_size, device="meta"))
    projected = inside[1] - inside[0] if inside else 0
    macs = {
        "vision": encoder.macs - projected,
        "projector": projected,
        "llm": llm.macs,
        "lm_head": head.macs,
    }
    return Counted(macs, {"vision": encoder.attention, "llm": llm.attention})


def encoder_total(counter: Counter) -> int:
    """MACs so far in a block that is still open."""
    return counter.get_total_flops() // 2


def layer_inputs(family: Any, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states ``[1, n, width]`` and rotation angles ``[1, n, head]`` of a decoder layer."""
    config = family.model.config.get_text_config()
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    hidden = torch.empty(1, n, config.hidden_size, device="meta")
    return hidden, torch.empty(1, n, head_dim, device="meta")


def _through_layers(family: Any, tokens: list[int]) -> None:
    for layer, n in zip(family.layers, tokens, strict=True):
        hidden, angles = layer_inputs(family, n)
        layer(hidden, position_embeddings=(angles, angles), attention_mask=None)
