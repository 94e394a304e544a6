"""Stage 2a: the projector is regressed onto the word embeddings of what each patch shows."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vtprune.harness.evaluation.data.mini import world
from vtprune.training.common import (
    HIDDEN,
    Budget,
    Run,
    load_state,
    optimiser,
    save_state,
    seed_everything,
    set_rate,
    stream,
    to_tensors,
)
from vtprune.training.speaker import Speaker, initialise, see, word_id
from vtprune.training.tower import build_tower, sine_positions, tower_batch

BUDGET = Budget(steps=200, batch=32, lr=3e-3, warmup=10)


def load_tower(out: Path, device: str) -> nn.Module:
    tower = build_tower().to(device)
    tower.load_state_dict(load_state(out / "tower.pt")["tower"])
    return tower.eval().requires_grad_(False)


def align_targets(speaker: Speaker, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
    """(N, 196, 128): the sum of the embeddings of a patch's words, its index and its position."""
    table, vocab = speaker.llm.model.embed_tokens.weight.detach(), speaker.vocab
    kinds = table[[word_id(vocab, k) for k in world.KINDS]]
    colors = torch.cat([table[[word_id(vocab, c) for c in world.COLORS]], extra["zero"]])
    chars = torch.cat([table[[vocab[c] for c in world.CHARS]], extra["zero"]])
    left = torch.cat([extra["left"], extra["zero"]])
    right = torch.cat([extra["right"], extra["zero"]])
    total = extra["position"][None].expand(batch["kind"].shape[0], -1, -1).clone()
    for name, rows in (("kind", kinds), ("color", colors), ("glyph", chars), ("left", left),
                       ("right", right)):  # fmt: skip
        index = batch[name].long()
        total += rows[torch.where(index < 0, len(rows) - 1, index)]
    return total


def align(speaker: Speaker, tower: nn.Module, seed: int, device: str, budget: Budget,
          worker: bool = True) -> float:  # fmt: skip
    """Regress the projector onto the embeddings; returns the share of variance explained."""
    draw = torch.Generator().manual_seed(seed)
    extra = {
        "zero": torch.zeros(1, HIDDEN),
        "left": 0.3 * torch.randn(world.MAX_INDEX + 1, HIDDEN, generator=draw),
        "right": 0.15 * torch.randn(world.MAX_INDEX + 1, HIDDEN, generator=draw),
        "position": 0.25 * sine_positions(world.GRID),
    }
    extra = {k: v.to(device) for k, v in extra.items()}
    opt = optimiser([(speaker.linear_1, 1.0), (speaker.linear_2, 1.0)], budget.lr)
    make = partial(tower_batch, seed=seed + 17, budget=Budget(1, budget.batch, 0))
    explained = 0.0
    bar = tqdm(stream(make, 0, budget.steps, worker), "align", budget.steps, mininterval=5)
    for step, raw in enumerate(bar):
        batch = to_tensors(raw, device)
        set_rate(opt, budget, step)
        with torch.no_grad():
            features = see(tower, batch["image"])
            want = align_targets(speaker, batch, extra)
        valid = batch["kind"] != world.IGNORE
        weight = torch.where(batch["kind"] > world.KIND["canvas"], 4.0, 0.6) * valid
        error = (speaker.project(features) - want).pow(2).mean(-1)
        loss = (error * weight).sum() / weight.sum()
        opt.zero_grad(set_to_none=True)
        loss.backward()
        opt.step()
        spread = ((want - want.mean((0, 1))).pow(2).mean(-1) * weight).sum() / weight.sum()
        explained = 1 - loss.item() / spread.item()
        bar.set_postfix(explained=f"{explained:.3f}")
    return round(explained, 4)


def run_align(out: Path, seed: int, run: Run, budget: Budget = BUDGET) -> dict[str, Any]:
    """A minute long, so always from the start; the state lands in `out/align.pt`."""
    seed_everything(seed + 1)
    speaker = Speaker()
    initialise(speaker)
    speaker.to(run.device)
    tower = load_tower(out, run.device)
    explained = align(speaker, tower, seed, run.device, budget, run.worker)
    save_state(out / "align.pt", speaker=speaker.state_dict())
    return {"explained": explained, "steps": budget.steps}
