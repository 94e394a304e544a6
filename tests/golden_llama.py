"""A Llama of a hundred lines, for goldens that run a whole model; float32, one sample, no cache
object, attention written out. It shares nothing with the runtime that prunes real models."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.golden_tools import Golden


class TinyLlama:
    """No biases, half-split rotary embedding, RMSNorm, SiLU-gated MLP, grouped keys and values."""

    def __init__(self, golden: Golden) -> None:
        p, self.w = golden.params, golden.weights()
        self.heads, self.kv_heads, self.n_layers = p["heads"], p["kv_heads"], p["n_layers"]
        self.eps, self.theta = p["rms_norm_eps"], p["rope_theta"]
        names = [name for name in self.w if name.endswith("layers.0.input_layernorm.weight")]
        self.prefix = names[0].removesuffix("layers.0.input_layernorm.weight")

    def weight(self, name: str) -> Tensor:
        return self.w[f"{self.prefix}{name}.weight"]

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight(name)

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        frequency = self.theta ** (-torch.arange(half).float() / half)
        angle = positions.float()[:, None] * frequency
        cos, sin = angle.cos(), angle.sin()
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    def layer(
        self, number: int, x: Tensor, positions: Tensor, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Output ``[n, d]``, attention ``[H, n, m]`` and the keys and values ``[H_kv, m, dh]``."""
        name = f"layers.{number}"
        normed = self.norm(x, f"{name}.input_layernorm")

        def heads(kind: str, count: int) -> Tensor:
            y = normed @ self.weight(f"{name}.self_attn.{kind}_proj").T
            return y.reshape(len(x), count, -1).transpose(0, 1)

        q = self.rotate(heads("q", self.heads), positions)
        k, v = self.rotate(heads("k", self.kv_heads), positions), heads("v", self.kv_heads)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=1), torch.cat([past[1], v], dim=1)
        repeat = self.heads // self.kv_heads
        logits = q @ k.repeat_interleave(repeat, 0).mT / q.shape[-1] ** 0.5
        n, m = logits.shape[-2:]
        future = torch.ones(n, m).triu(m - n + 1).bool()
        attention = logits.masked_fill(future, -torch.inf).softmax(-1)
        mixed = (attention @ v.repeat_interleave(repeat, 0)).transpose(0, 1).reshape(n, -1)
        x = x + mixed @ self.weight(f"{name}.self_attn.o_proj").T
        y = self.norm(x, f"{name}.post_attention_layernorm")
        gate = torch.nn.functional.silu(y @ self.weight(f"{name}.mlp.gate_proj").T)
        up = y @ self.weight(f"{name}.mlp.up_proj").T
        x = x + (gate * up) @ self.weight(f"{name}.mlp.down_proj").T
        return x, attention, (k, v)
