"""Stage 3: tower, projector and language model together, on every prompt form.

The tower moves at half the rate and keeps its patch labels as a second task, so that what CLS
attends to stays meaningful while the features adapt to the questions.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vtprune.training import packing
from vtprune.training.checks import evaluate
from vtprune.training.common import (
    HIDDEN,
    IMAGE_TOKENS,
    Budget,
    Run,
    load_state,
    normalise,
    seed_everything,
    train_loop,
)
from vtprune.training.losses import answer_loss
from vtprune.training.speaker import Speaker, assemble, exact, forward
from vtprune.training.tower import PatchHeads, build_tower, patch_loss, tower_gates

BUDGET = Budget(steps=260, batch=18, lr=8e-4, warmup=30)


def load_parts(
    out: Path, device: str, name: str = "language"
) -> tuple[nn.Module, PatchHeads, Speaker]:
    """Tower, its heads and speaker as the stage `name` left them."""
    tower, heads, speaker = build_tower(), PatchHeads(), Speaker()
    state, first = load_state(out / f"{name}.pt"), load_state(out / "tower.pt")
    tower.load_state_dict(state.get("tower", first["tower"]))
    heads.load_state_dict(state.get("heads", first["heads"]))
    speaker.load_state_dict(state["speaker"])
    return tower.to(device), heads.to(device), speaker.to(device)


def joint_make(step: int, seed: int, budget: Budget) -> dict:
    kept = 96 if step < budget.steps // 2 else IMAGE_TOKENS
    return packing.language_batch(step, seed, 3, budget.batch, 9, kept, 0.35, hard=8.0)


def joint_step(
    tower: nn.Module, heads: PatchHeads, speaker: Speaker, batch: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Any]]:
    """Answer loss plus half the patch loss, gradients everywhere."""
    seen = tower(pixel_values=normalise(batch["image"]), output_hidden_states=True)
    hidden, keep = seen.hidden_states[-2], batch["keep"]
    features = hidden[:, 1:].gather(1, keep[:, :, None].expand(-1, -1, HIDDEN))
    x, position, mask = assemble(speaker, speaker.project(features), keep, batch, IMAGE_TOKENS)
    front = len(packing.PREFIX) + keep.shape[1]
    states, _ = forward(speaker, x, position, mask, prefix=front)
    answers, logits = answer_loss(speaker, states, batch, front)
    patches = patch_loss(heads, hidden, batch, facts_weight=2.0, pooled=seen.pooler_output)
    hit = exact(logits, batch).float().mean().item()
    shown = {"ans": f"{answers.item():.3f}", "patch": f"{patches.item():.3f}", "hit": f"{hit:.3f}"}
    return answers + 0.5 * patches, shown


def train_joint(out: Path, seed: int, run: Run, budget: Budget = BUDGET) -> dict[str, Any]:
    """Train everything; the state lands in `out/joint.pt`."""
    seed_everything(seed + 3)
    tower, heads, speaker = load_parts(out, run.device)
    last = train_loop(
        "joint", out, budget, run,
        parts={"tower": tower, "heads": heads, "speaker": speaker},
        rates={"tower": 0.5, "heads": 0.5}, clip=(("tower", "heads"), ("speaker",)),
        make=partial(joint_make, seed=seed, budget=budget),
        loss_of=lambda step, batch: joint_step(tower, heads, speaker, batch),
        report=lambda: evaluate(speaker, tower, run.device, 48),
    )  # fmt: skip
    scores = evaluate(speaker, tower, run.device, run.check)
    return {"exact": scores, "gates": tower_gates(tower, heads, run.device, run.check),
            "steps": last}  # fmt: skip
