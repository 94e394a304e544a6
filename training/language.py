"""Stage 2b: the language model learns to answer, with the tower frozen."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.training import packing
from vtprune.training.align import load_tower
from vtprune.training.checks import evaluate
from vtprune.training.common import (
    HIDDEN,
    IMAGE_TOKENS,
    Budget,
    Run,
    load_state,
    seed_everything,
    train_loop,
)
from vtprune.training.losses import answer_loss, grounding_loss, naming_loss, wanted_attention
from vtprune.training.speaker import Speaker, assemble, exact, forward, see

BUDGET = Budget(steps=1600, batch=16, lr=1.7e-3, warmup=60)
LAST = 1200  # the run ends here: the joint stage takes over where all tokens would come back
KEPT = 80  # visual tokens that stay until then


def language_plan(step: int, budget: Budget) -> dict[str, Any]:
    """Visual tokens kept, share of multiple choice, and loss weights of a step."""
    done = step / budget.steps
    fade = min(1.0, max(0.0, (0.75 - done) / 0.38))
    return {
        "kept": KEPT if done < 0.75 else IMAGE_TOKENS,
        "choices": 0.15 if done < 0.15 else 0.35,
        "ground": fade,
        "naming": 0.3 * fade,
    }


def language_make(step: int, seed: int, budget: Budget) -> dict:
    plan = language_plan(step, budget)
    return packing.language_batch(step, seed, 2, budget.batch, 10, plan["kept"], plan["choices"])


def language_step(
    speaker: Speaker, tower: nn.Module, batch: dict[str, Tensor], plan: dict[str, Any]
) -> tuple[Tensor, dict[str, Any]]:
    """Loss of one packed batch with a frozen tower."""
    keep = batch["keep"]
    with torch.no_grad():
        features = see(tower, batch["image"])
        features = features.gather(1, keep[:, :, None].expand(-1, -1, HIDDEN))
    visual = speaker.project(features)
    x, position, mask = assemble(speaker, visual, keep, batch, IMAGE_TOKENS)
    front = len(packing.PREFIX) + keep.shape[1]
    wanted = wanted_attention(batch, keep, x.shape[1]) if plan["ground"] > 0 else None
    rows = batch["rows"] + front
    states, lost = forward(speaker, x, position, mask, rows, wanted, prefix=front)
    loss, logits = answer_loss(speaker, states, batch, front)
    shown: dict[str, Any] = {"ans": round(loss.item(), 3)}
    if wanted:
        ground, layers = grounding_loss(lost, wanted, batch["weight"])
        loss = loss + plan["ground"] * ground
        loss = loss + plan["naming"] * naming_loss(speaker, states, batch, keep)
        shown |= {f"g{k}": v for k, v in layers.items()}
    shown["hit"] = round(exact(logits, batch).float().mean().item(), 3)
    return loss, shown


def train_language(out: Path, seed: int, run: Run, budget: Budget = BUDGET) -> dict[str, Any]:
    """Train the speaker; the state lands in `out/language.pt`."""
    seed_everything(seed + 2)
    tower, speaker = load_tower(out, run.device), Speaker().to(run.device)
    speaker.load_state_dict(load_state(out / "align.pt")["speaker"])

    def loss_of(step: int, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        return language_step(speaker, tower, batch, language_plan(step, budget))

    last = train_loop(
        "language", out, budget, run if run.stop_after else replace(run, stop_after=LAST),
        parts={"speaker": speaker}, clip=(("speaker",),),
        make=partial(language_make, seed=seed, budget=budget), loss_of=loss_of,
        report=lambda: evaluate(speaker, tower, run.device, 48),
    )  # fmt: skip
    return {"exact": evaluate(speaker, tower, run.device, run.check), "steps": last}
