"""Exact match on held-out pictures while a stage runs, by question kind: averages hide failures."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from vtprune.harness.evaluation.data.mini import world
from vtprune.training import packing
from vtprune.training.common import IMAGE_TOKENS, to_tensors
from vtprune.training.losses import answer_loss
from vtprune.training.speaker import Speaker, assemble, exact, forward, see


def count_hits(
    tally: dict[str, list[int]], good: Tensor, blocks: list[list[packing.Block]]
) -> None:
    """Add a batch to the tally by question kind; multiple choice counts as `choice`."""
    for i, mine in enumerate(blocks):
        for j, k in enumerate(mine):
            name = "choice" if k.style in packing.questions.CHOICE_STYLES else k.kind
            one = tally.setdefault(name, [0, 0])
            one[0] += int(good[i, j])
            one[1] += 1


def held_out(
    first: int, count: int, per_picture: int, choices: float, size: tuple[int, int] | None = None
) -> tuple[list[world.Picture], list[list[packing.Block]]]:
    """Held-out pictures from number `first` on, with the blocks of their questions."""
    rng = np.random.default_rng([11, first])
    size = size or (world.TILE, world.TILE)
    pictures = [world.draw(world.HELD_OUT_SEED + first + i, size=size) for i in range(count)]
    asked = [packing.questions.sample(p, rng, per_picture, choices) for p in pictures]
    kept = [(p, a) for p, a in zip(pictures, asked, strict=True) if a]
    blocks = [[packing.make_block(q, s) for q, s in a] for _, a in kept]
    return [p for p, _ in kept], blocks


@torch.no_grad()
def evaluate(
    speaker: Speaker,
    tower: nn.Module,
    device: str,
    count: int = 128,
    per_picture: int = 10,
    choices: float = 0.25,
    first: int = 500_000,
) -> dict[str, float]:
    """Exact match by question kind on held-out pictures."""
    tally: dict[str, list[int]] = {}
    for start in range(0, count, 16):
        pictures, blocks = held_out(first + start, min(16, count), per_picture, choices)
        arrays = packing.pack_blocks(blocks)
        arrays["image"] = np.stack([p.image for p in pictures])
        batch = to_tensors(arrays, device)
        visual = speaker.project(see(tower, batch["image"]))
        places = torch.arange(IMAGE_TOKENS, device=device).expand(len(blocks), -1)
        x, position, mask = assemble(speaker, visual, places, batch, IMAGE_TOKENS)
        front = len(packing.PREFIX) + IMAGE_TOKENS
        states, _ = forward(speaker, x, position, mask, prefix=front)
        _, logits = answer_loss(speaker, states, batch, front)
        count_hits(tally, exact(logits, batch), blocks)
    return {k: round(a / n, 3) for k, (a, n) in sorted(tally.items())}
