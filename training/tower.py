"""Stage 1: the vision tower learns to say what each patch shows.

Linear heads read the penultimate hidden states, the ones LLaVA hands to the projector. Besides the
patch labels, CLS and the pooled output name the (colour, shape) pairs, ground, sky and characters
of the picture; without that, CLS attention would mean nothing to the methods that rank by it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtprune.harness.evaluation.data.mini import world
from vtprune.training.common import (
    HIDDEN,
    Budget,
    Run,
    normalise,
    seed_everything,
    to_tensors,
    train_loop,
    vision_config,
)

HEADS = {"kind": len(world.KINDS), "color": len(world.COLORS) + 1, "glyph": len(world.CHARS),
         "left": world.MAX_INDEX + 1, "right": world.MAX_INDEX + 1}  # fmt: skip
HEAD_WEIGHT = {"kind": 1.2, "color": 1.2, "glyph": 2.0, "left": 1.5, "right": 0.5}
BUDGET = Budget(steps=2200, batch=32, lr=1.7e-3, warmup=120)
GATES = {"shapes": 0.90, "color": 0.99, "chart color": 0.97, "glyph": 0.97, "index": 0.90}

# Offsets of the multi-label vector of a picture.
_PAIRS = len(world.SHAPES) * len(world.COLORS)
_GROUND = _PAIRS
_SKY = _GROUND + len(world.GROUNDS)
_CHART = _SKY + len(world.SKIES)
_CHARS = _CHART + 1
_SIGNS = _CHARS + len(world.CHARS)
_BARS = _SIGNS + len(world.COLORS)
FACTS = _BARS + len(world.COLORS)


class PatchHeads(nn.Module):
    """Linear readers of the tower: one per patch label and one for the facts of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.patch = nn.ModuleDict({name: nn.Linear(HIDDEN, n) for name, n in HEADS.items()})
        self.cls = nn.Linear(HIDDEN, FACTS)
        self.pooled = nn.Linear(HIDDEN, FACTS)


def build_tower() -> nn.Module:
    """A CLIP vision model whose position embeddings start as a 2-D sine-cosine pattern."""
    from transformers import CLIPVisionModel

    tower = CLIPVisionModel(vision_config())
    with torch.no_grad():
        for name, weight in tower.named_parameters():
            if name.endswith("position_embedding.weight"):
                weight[1:] = 0.3 * sine_positions(world.GRID)
                weight[0] = 0
    return tower


def sine_positions(grid: int, width: int = HIDDEN) -> Tensor:
    """(grid * grid, width) sine-cosine code of row and column."""
    freq = 1.0 / (100.0 ** (torch.arange(width // 4) / (width // 4)))
    angle = torch.arange(grid)[:, None] * freq
    code = torch.cat([angle.sin(), angle.cos()], 1)
    rows = code[:, None].expand(grid, grid, -1)
    cols = code[None].expand(grid, grid, -1)
    return torch.cat([rows, cols], 2).reshape(grid * grid, width)


def facts(picture: world.Picture) -> np.ndarray:
    """Multi-label vector (FACTS,) of a picture."""
    y = np.zeros(FACTS, np.float32)
    for s in picture.shapes:
        y[world.SHAPES.index(s.shape) * len(world.COLORS) + world.COLORS.index(s.color)] = 1
    if picture.ground:
        y[_GROUND + world.GROUNDS.index(picture.ground)] = 1
        y[_SKY + world.SKIES.index(picture.sky)] = 1
    y[_CHART] = bool(picture.bars)
    for sign in picture.signs:
        y[_SIGNS + world.COLORS.index(sign.color)] = 1
        for char in sign.text:
            y[_CHARS + world.CHARS.index(char)] = 1
    for bar in picture.bars:
        y[_BARS + world.COLORS.index(bar.color)] = 1
        for char in str(bar.value):
            y[_CHARS + world.CHARS.index(char)] = 1
    return y


def pack(pictures: list[world.Picture]) -> dict[str, np.ndarray]:
    """Images (N, 112, 112, 3), labels (N, 196) each and facts (N, FACTS)."""
    out = {"image": np.stack([p.image for p in pictures])}
    for name in HEADS:
        out[name] = np.stack([p.labels[name].reshape(-1) for p in pictures])
    out["facts"] = np.stack([facts(p) for p in pictures])
    return out


def tower_batch(step: int, seed: int, budget: Budget) -> dict[str, np.ndarray]:
    """Pictures of a step: crowded ones early (26 % pages, 22 % shapes), mostly normal ones late."""
    rng = np.random.default_rng([seed, 1, step])
    late = step > 0.67 * budget.steps
    pages, shapes = (0.12, 0.18) if late else (0.28, 0.22)
    pictures = []
    for _ in range(budget.batch):
        u = rng.random()
        if u < pages + shapes:
            pictures.append(world.draw_dense(rng, shapes=u >= pages))
        else:
            pictures.append(world.draw(int(rng.integers(world.HELD_OUT_SEED))))
    return pack(pictures)


def class_weights(name: str) -> Tensor:
    """Rare labels need weight, or the tower learns backgrounds and stops."""
    weight = torch.ones(HEADS[name])
    if name == "kind":
        weight.fill_(2.0)
        weight[: world.KIND["canvas"] + 1] = 0.3
        weight[[world.KIND[s] for s in world.SHAPES]] = 5.0
    elif name == "color":
        weight[world.NO_COLOR] = 0.1
    return weight


def label_loss(heads: PatchHeads, x: Tensor, labels: dict[str, Tensor]) -> Tensor:
    """Loss of the patch heads on normalised features x (..., 128) with labels (...) each."""
    total = x.new_zeros(())
    for name, layer in heads.patch.items():
        target = labels[name].long()
        keep = target != world.IGNORE
        logits = layer(x[keep]).float()
        weight = class_weights(name).to(logits.device)
        target = target[keep]
        scale = weight[target]
        if name == "color":
            scale = torch.where(labels["glyph"][keep] != world.IGNORE, 4 * scale, scale)
        loss = F.cross_entropy(logits, target, reduction="none")
        total = total + HEAD_WEIGHT[name] * (loss * scale).sum() / scale.sum().clamp(min=1)
    return total


def patch_loss(
    heads: PatchHeads,
    hidden: Tensor,
    batch: dict[str, Tensor],
    facts_weight: float = 6.0,
    pooled: Tensor | None = None,
) -> Tensor:
    """Patch labels and facts from hidden (N, 197, 128), where CLS is token 0."""
    x = heads.norm(hidden)
    total = label_loss(heads, x[:, 1:], batch)
    for layer, vector in ((heads.cls, x[:, 0]), (heads.pooled, pooled)):
        if vector is not None:
            logits = layer(vector).float()
            loss = F.binary_cross_entropy_with_logits(logits, batch["facts"])
            total = total + facts_weight * loss
    return total


@torch.no_grad()
def tower_gates(tower: nn.Module, heads: PatchHeads, device: str, count: int = 256) -> dict:
    """Accuracies on held-out normal pictures, kept apart because their average hides failures."""
    hits: dict[str, list[int]] = {name: [0, 0] for name in GATES}
    hits["kind"] = [0, 0]
    tower.eval()
    for first in range(0, count, 64):
        pictures = [world.draw(world.HELD_OUT_SEED + first + i) for i in range(min(64, count))]
        batch = to_tensors(pack(pictures), device)
        out = tower(pixel_values=normalise(batch["image"]), output_hidden_states=True)
        x = heads.norm(out.hidden_states[-2])[:, 1:]
        guess = {name: layer(x).argmax(-1) for name, layer in heads.patch.items()}
        is_shape = (batch["kind"] >= world.KIND["circle"]) & (batch["kind"] <= world.KIND["cross"])
        is_glyph = batch["glyph"] != world.IGNORE
        chart = batch["facts"][:, _CHART].bool()[:, None]
        named = (batch["color"] != world.IGNORE) & (batch["color"] != world.NO_COLOR)
        for name, key, mask in (
            ("shapes", "kind", is_shape),
            ("kind", "kind", batch["kind"] != world.IGNORE),
            ("color", "color", named),
            ("chart color", "color", is_glyph & chart),
            ("glyph", "glyph", is_glyph),
            ("index", "left", is_glyph),
        ):
            hits[name][0] += int((guess[key] == batch[key])[mask].sum())
            hits[name][1] += int(mask.sum())
    tower.train()
    return {name: round(good / max(1, total), 4) for name, (good, total) in hits.items()}


def train_tower(out: Path, seed: int, run: Run, budget: Budget = BUDGET) -> dict[str, Any]:
    """Train the tower and its heads; the state lands in `out/tower.pt`."""
    seed_everything(seed)
    tower, heads = build_tower().to(run.device), PatchHeads().to(run.device)
    forward = torch.compile(tower) if run.compiled else tower

    def loss_of(step: int, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        seen = forward(pixel_values=normalise(batch["image"]), output_hidden_states=True)
        loss = patch_loss(heads, seen.hidden_states[-2], batch, pooled=seen.pooler_output)
        return loss, {"loss": f"{loss.item():.3f}"}

    last = train_loop(
        "tower", out, budget, run, parts={"tower": tower, "heads": heads},
        clip=(("tower", "heads"),), make=partial(tower_batch, seed=seed, budget=budget),
        loss_of=loss_of, report=lambda: tower_gates(tower, heads, run.device, 64),
    )  # fmt: skip
    gates = tower_gates(tower, heads, run.device, run.check)
    return {"gates": gates, "wanted": GATES, "steps": last}
