"""Stage 4: the LLaVA-NeXT form, which sees a squashed view and then tiles at full size.

Visual tokens are ordered exactly as in Hugging Face: the 196 of the base view, then the grid of
tile patches row by row with one `image_newline` after each row. A single 112x112 picture is centred
by the processor on a 112x224 canvas whose padding is cut off again, so it shows twice: as the base
view and as a 14x14 grid with newlines.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vtprune.harness.evaluation.data.mini import questions, world
from vtprune.harness.evaluation.data.mini.world import GRID, TILE, Picture
from vtprune.training import packing
from vtprune.training.checks import count_hits, held_out
from vtprune.training.common import (
    HIDDEN,
    IMAGE_TOKENS,
    Budget,
    Run,
    normalise,
    seed_everything,
    to_tensors,
    train_loop,
)
from vtprune.training.joint import load_parts
from vtprune.training.losses import answer_loss, grounding_loss, wanted_attention
from vtprune.training.speaker import Speaker, assemble, exact, forward
from vtprune.training.tower import HEADS, PatchHeads, label_loss

BUDGET = Budget(steps=280, batch=12, lr=8e-4, warmup=20)
SIZES = ((112, 112), (112, 224), (224, 112), (224, 224))
CYCLE = (0, 1, 0, 2, 0, 3)  # sizes in turn; half of the steps are single views
SHARE = {0: 1.0, 1: 0.67, 2: 0.67, 3: 0.42}  # of the batch size


def views(image: np.ndarray) -> np.ndarray:
    """Base view and tiles (1 + tiles, 112, 112, 3) uint8, as `LlavaNextImageProcessor` cuts."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    height, width = image.shape[:2]
    if (height, width) == (TILE, TILE):
        canvas = np.zeros((TILE, 2 * TILE, 3), np.uint8)
        canvas[:, TILE // 2 : 3 * TILE // 2] = image
        base = image
    else:
        canvas = image
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        small = resize(pixels, [TILE, TILE], InterpolationMode.BICUBIC, antialias=True)
        base = small.permute(1, 2, 0).numpy()
    rows, cols = canvas.shape[0] // TILE, canvas.shape[1] // TILE
    tiles = canvas.reshape(rows, TILE, cols, TILE, 3).transpose(0, 2, 1, 3, 4)
    return np.concatenate([base[None], tiles.reshape(-1, TILE, TILE, 3)])


def token_map(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each visual token of a picture of this size comes from.

    Returns `source` (N,), an index into the patches of its views (view * 196 + patch) with -1 for
    a newline, and `patch` (N, 2), the (row, column) in the picture or -1 (newline, squashed view).
    """
    single = (height, width) == (TILE, TILE)
    rows, cols = height // world.PATCH, width // world.PATCH
    source, patch = list(range(IMAGE_TOKENS)), []
    for i in range(IMAGE_TOKENS):
        patch.append((i // GRID, i % GRID) if single else (-1, -1))
    shift = GRID // 2 if single else 0
    across = 2 if single else cols // GRID
    for r in range(rows):
        for c in range(cols):
            x = c + shift
            view = 1 + (r // GRID) * across + x // GRID
            source.append(view * IMAGE_TOKENS + (r % GRID) * GRID + x % GRID)
            patch.append((r, c))
        source.append(-1)
        patch.append((-1, -1))
    return np.array(source), np.array(patch)


def collate(
    pictures: list[Picture], blocks: list[list[packing.Block]], rng: np.random.Generator | None
) -> dict[str, np.ndarray]:
    """A packed batch of pictures of ONE size; with `rng`, 60 % of the background is left out.

    Adds `image` (all views), `source` (B, V) into the flat patches of all views (the last index is
    the newline), `keep` (B, V) positions with -1 as padding, `total`, and labels (B, V).
    """
    height, width = pictures[0].image.shape[:2]
    source, patch = token_map(height, width)
    index: dict[tuple[int, int], list[int]] = {}
    for at, (r, c) in enumerate(patch.tolist()):
        if r >= 0:
            index.setdefault((r, c), []).append(at)
    out = packing.pack_blocks(blocks, len(source), [index] * len(pictures))
    cut = [views(p.image) for p in pictures]
    out["image"] = np.concatenate(cut)
    newline, each = len(out["image"]) * IMAGE_TOKENS, len(cut[0]) * IMAGE_TOKENS
    kept = []
    for p in pictures:
        kind = np.where(patch[:, 0] < 0, 0, p.labels["kind"][patch[:, 0], patch[:, 1]])
        front = (kind == world.IGNORE) | (kind > world.KIND["canvas"]) | (source < 0)
        stay = front | (rng.random(len(source)) < 0.4) if rng is not None else front | True
        kept.append(np.flatnonzero(stay))
    longest = max(len(k) for k in kept)
    shape = (len(pictures), longest)
    out["keep"] = np.full(shape, -1, np.int64)
    out["source"] = np.full(shape, newline, np.int64)
    out["total"] = np.full((len(pictures), 1), len(source), np.int64)
    for name in HEADS:
        out[name] = np.full(shape, world.IGNORE, np.int16)
    for i, (p, k) in enumerate(zip(pictures, kept, strict=True)):
        out["keep"][i, : len(k)] = k
        out["source"][i, : len(k)] = np.where(source[k] < 0, newline, source[k] + i * each)
        for name in HEADS:
            label = p.labels[name][patch[k, 0], patch[k, 1]]
            out[name][i, : len(k)] = np.where(patch[k, 0] < 0, world.IGNORE, label)
    return out


def anyres_batch(step: int, seed: int, budget: Budget) -> dict[str, np.ndarray]:
    """Pictures of one size a step, in the order of `CYCLE`."""
    rng = np.random.default_rng([seed, 4, step])
    which = CYCLE[step % len(CYCLE)]
    count = max(1, round(budget.batch * SHARE[which]))
    pictures, blocks = [], []
    while len(pictures) < count:
        p = world.draw(int(rng.integers(world.HELD_OUT_SEED)), size=SIZES[which])
        asked = questions.sample(p, rng, 9, 0.3)
        if asked:
            pictures.append(p)
            blocks.append([packing.make_block(q, s) for q, s in asked])
    return collate(pictures, blocks, rng if step < 0.55 * budget.steps else None)


def look(
    tower: nn.Module, speaker: Speaker, newline: Tensor, batch: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Features (B, V, 128) before the projector and visual tokens (B, V, 128) behind it."""
    seen = tower(pixel_values=normalise(batch["image"]), output_hidden_states=True)
    flat = seen.hidden_states[-2][:, 1:].reshape(-1, HIDDEN)
    features = flat[batch["source"].clamp(max=len(flat) - 1)]
    visual = speaker.project(features)
    is_newline = (batch["source"] == len(flat))[:, :, None]
    return features, torch.where(is_newline, newline.to(visual.dtype), visual)


def anyres_step(
    tower: nn.Module,
    heads: PatchHeads,
    speaker: Speaker,
    newline: Tensor,
    batch: dict[str, Tensor],
    ground: float,
) -> tuple[Tensor, dict[str, Any]]:
    """Answer loss, 0.3 of the patch loss on the tiles and a fading grounding loss."""
    features, visual = look(tower, speaker, newline, batch)
    x, position, mask = assemble(speaker, visual, batch["keep"], batch, batch["total"])
    front = len(packing.PREFIX) + batch["keep"].shape[1]
    wanted = wanted_attention(batch, batch["keep"], x.shape[1]) if ground > 0 else None
    rows = batch["rows"] + front
    states, lost = forward(speaker, x, position, mask, rows, wanted, prefix=front)
    answers, logits = answer_loss(speaker, states, batch, front)
    loss = answers + 0.3 * label_loss(heads, heads.norm(features), batch)
    shown = {"ans": f"{answers.item():.3f}"}
    if wanted:
        extra, layers = grounding_loss(lost, wanted, batch["weight"])
        loss = loss + ground * extra
        shown |= {f"g{k}": f"{v:.2f}" for k, v in layers.items()}
    shown["hit"] = f"{exact(logits, batch).float().mean().item():.3f}"
    return loss, shown


@torch.no_grad()
def evaluate_anyres(
    tower: nn.Module,
    speaker: Speaker,
    newline: Tensor,
    device: str,
    count: int = 24,
    first: int = 700_000,
) -> dict[str, dict[str, float]]:
    """Exact match by picture size and question kind, `count` held-out pictures a size."""
    report = {}
    for which, size in enumerate(SIZES):
        tally: dict[str, list[int]] = {}
        for start in range(0, count, 8):
            at = first + which * 10_000 + start
            pictures, blocks = held_out(at, min(8, count - start), 9, 0.25, size)
            batch = to_tensors(collate(pictures, blocks, None), device)
            _, visual = look(tower, speaker, newline, batch)
            x, position, mask = assemble(speaker, visual, batch["keep"], batch, batch["total"])
            front = len(packing.PREFIX) + batch["keep"].shape[1]
            states, _ = forward(speaker, x, position, mask, prefix=front)
            _, logits = answer_loss(speaker, states, batch, front)
            count_hits(tally, exact(logits, batch), blocks)
        report[f"{size[0]}x{size[1]}"] = {k: round(a / n, 3) for k, (a, n) in sorted(tally.items())}
    return report


class Newline(nn.Module):
    """The learned token that ends a row of tiles."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(HIDDEN).normal_(0, 0.3))


def train_anyres(out: Path, seed: int, run: Run, budget: Budget = BUDGET) -> dict[str, Any]:
    """Continue from the joint stage; the state lands in `out/anyres.pt`."""
    seed_everything(seed + 4)
    tower, heads, speaker = load_parts(out, run.device, "joint")
    newline = Newline().to(run.device)

    def loss_of(step: int, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        ground = max(0.0, 0.5 * (1 - step / (0.55 * budget.steps)))
        return anyres_step(tower, heads, speaker, newline.weight, batch, ground)

    last = train_loop(
        "anyres", out, budget, run,
        parts={"tower": tower, "heads": heads, "speaker": speaker, "newline": newline},
        rates={"tower": 0.3, "heads": 0.3}, clip=(("tower", "heads"), ("speaker", "newline")),
        make=partial(anyres_batch, seed=seed, budget=budget), loss_of=loss_of,
    )  # fmt: skip
    few = max(1, run.check // 10)
    return {"exact": evaluate_anyres(tower, speaker, newline.weight, run.device, few),
            "steps": last}  # fmt: skip
