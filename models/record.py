"""What was kept where: the one record the oracle, the ledger, the overlays and the tests read."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Unreduced:
    """What a sample was before a method made its pictures smaller or left them out.

    ``grids`` as in :class:`SampleRecord`; ``planned`` are those of the pictures handed back.
    """

    visual_tokens: int
    grids: tuple[tuple[int, int, int], ...]
    planned: tuple[tuple[int, int, int], ...] = ()


@dataclass
class SampleRecord:
    """Visual tokens of one prompt in force at every layer.

    Attributes:
        sample_id: caller's name for the sample.
        prompt_length: tokens of the full prompt, batch padding left out.
        visual: int64 ``[V]`` positions of the visual tokens in the full prompt.
        n_layers: depth of the language model.
        stages: ``(layer, alive bool [V])``: mask in force from that layer on, first at layer 0.
        positions: ``original`` or ``compact``.
        crops: encoder passes of the sample's images.
        grids: per image (crops or frames, rows, columns) of the tokens behind the projector; what
            a native-resolution encoder computes follows from it.
        views: sizes of the graphs the selection ran on.
        rewrites: layer -> (positions in the full prompt, features ``[k, d]``) of merged slots.
        selection_seconds: wall time of the selection of this sample's batch, shared by its rows.
        merged: patches merged away in front of encoder layers 1, 2, ... of every crop.
        unreduced: the sample before its pictures were changed; None where they were not.
        signal_macs: multiply-accumulates of models that ran for the selection alone (a text tower).
    """

    sample_id: str
    prompt_length: int
    visual: Tensor
    n_layers: int
    stages: list[tuple[int, Tensor]] = field(default_factory=list)
    positions: str = "original"
    crops: int = 0
    grids: tuple[tuple[int, int, int], ...] = ()
    views: tuple[int, ...] = ()
    rewrites: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    selection_seconds: float = 0.0
    merged: tuple[int, ...] = ()
    unreduced: Unreduced | None = None
    signal_macs: int = 0

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of the full prompt, row-end tokens included."""
        return self.visual.numel()

    @property
    def visual_tokens_asked(self) -> int:
        """The same of the pictures as they were asked about, before any was made smaller."""
        return self.visual_tokens if self.unreduced is None else self.unreduced.visual_tokens

    @property
    def length_asked(self) -> int:
        """Tokens of the prompt with those pictures."""
        return self.prompt_length - self.visual_tokens + self.visual_tokens_asked

    @property
    def visual_per_layer(self) -> list[int]:
        """Visual tokens entering each layer."""
        counts = [self.visual_tokens] * self.n_layers
        for layer, alive in self.stages:
            counts[layer:] = [int(alive.sum())] * (self.n_layers - layer)
        return counts

    @property
    def tokens_per_layer(self) -> list[int]:
        """All prompt tokens entering each layer."""
        text = self.prompt_length - self.visual_tokens
        return [text + count for count in self.visual_per_layer]

    @property
    def mean_removal(self) -> float:
        """Fraction of visual tokens removed, mean over the layers; 0 without an image."""
        if not self.visual_tokens_asked:
            return 0.0
        return 1.0 - sum(self.visual_per_layer) / (self.n_layers * self.visual_tokens_asked)

    def settle(self) -> None:
        """Bring tensors to the host; until a record is read they wait where they were made."""
        self.stages = [(layer, alive.cpu()) for layer, alive in self.stages]
        self.rewrites = {
            layer: (where.cpu(), features.cpu())
            for layer, (where, features) in self.rewrites.items()
        }

    def alive(self, layer: int) -> Tensor:
        """bool ``[V]``: visual tokens entering ``layer``."""
        mask = torch.ones(self.visual_tokens, dtype=torch.bool)
        for start, alive in self.stages:
            if start <= layer:
                mask = alive
        return mask

    def keep_mask(self, layer: int) -> Tensor:
        """bool ``[prompt_length]``: prompt tokens entering ``layer``; text is always True."""
        mask = torch.ones(self.prompt_length, dtype=torch.bool)
        mask[self.visual] = self.alive(layer)
        return mask

    def to_json(self) -> dict[str, Any]:
        """JSON-able form; masks as base64 of packed bits, most significant bit first."""
        asked = self.unreduced
        return {
            "sample_id": self.sample_id,
            "prompt_length": self.prompt_length,
            "visual_tokens": self.visual_tokens,
            "visual_per_layer": self.visual_per_layer,
            "mean_removal": round(self.mean_removal, 6),
            "crops": self.crops,
            "grids": [list(grid) for grid in self.grids],
            "views": list(self.views),
            "positions": self.positions,
            "kept": [[layer, pack_bits(alive)] for layer, alive in self.stages],
            **({"merged": list(self.merged)} if self.merged else {}),
            **({} if asked is None else {"unreduced": {
                "visual_tokens": asked.visual_tokens, "grids": [list(g) for g in asked.grids]}}),
        }  # fmt: skip


def pack_bits(mask: Tensor) -> str:
    """bool ``[n]`` as base64 text."""
    import numpy as np

    return base64.b64encode(np.packbits(mask.cpu().numpy()).tobytes()).decode()


def unpack_bits(text: str, n: int) -> Tensor:
    """Inverse of :func:`pack_bits`."""
    import numpy as np

    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8), count=n)
    return torch.from_numpy(bits.astype(bool))
