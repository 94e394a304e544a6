"""Stage 3: tower, projector and language model together, on every prompt form.

The tower moves at half the rate and keeps its patch labels as a second task, so that what CLS
attends to stays meaningful while the features adapt to the questions.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from harness.embedded import packing
from harness.embedded.common import (
    HIDDEN,
    IMAGE_TOKENS,
    Budget,
    autocast,
    load_state,
    normalise,
    optimiser,
    save_state,
    seed_everything,
    set_rate,
    stream,
)
from harness.embedded.language import (
    Speaker,
    answer_loss,
    assemble,
    evaluate,
    exact,
    forward,
)
from harness.embedded.tower import PatchHeads, build_tower, patch_loss, to_tensors, tower_gates

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


def train_joint(
    out: Path,
    seed: int,
    device: str = "cpu",
    budget: Budget = BUDGET,
    resume: bool = True,
    bf16: bool = True,
    worker: bool = True,
    save_every: int = 100,
    stop_after: int | None = None,
    check: int = 256,
) -> dict[str, Any]:
    """Train everything; the state lands in `out/joint.pt`."""
    seed_everything(seed + 3)
    tower, heads, speaker = load_parts(out, device)
    opt = optimiser([(tower, 0.5), (heads, 0.5), (speaker, 1.0)], budget.lr)
    path, start = out / "joint.pt", 0
    if resume and path.exists():
        state = load_state(path)
        for module, name in ((tower, "tower"), (heads, "heads"), (speaker, "speaker")):
            module.load_state_dict(state[name])
        opt.load_state_dict(state["opt"])
        start = state["step"]
    last = budget.steps if stop_after is None else min(budget.steps, stop_after)
    make = partial(joint_make, seed=seed, budget=budget)

    def save(step: int) -> None:
        save_state(path, tower=tower.state_dict(), heads=heads.state_dict(),
                   speaker=speaker.state_dict(), opt=opt.state_dict(), step=step)  # fmt: skip

    bar = tqdm(stream(make, start, last, worker), "joint", last, initial=start, mininterval=5)
    for step, raw in enumerate(bar, start):
        batch = to_tensors(raw, device)
        set_rate(opt, budget, step)
        with autocast(device, bf16):
            loss, shown = joint_step(tower, heads, speaker, batch)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([*tower.parameters(), *heads.parameters()], 1.0)
        nn.utils.clip_grad_norm_(speaker.parameters(), 1.0)
        opt.step()
        if step % 20 == 0:
            bar.set_postfix(shown)
        if (step + 1) % save_every == 0 and step + 1 < last:
            save(step + 1)
            tqdm.write(f"joint step {step + 1}: {evaluate(speaker, tower, device, 48)}")
    save(last)
    with torch.no_grad():
        scores = evaluate(speaker, tower, device, check)
        gates = tower_gates(tower, heads, device, check)
    tqdm.write(f"joint: {scores} {gates}")
    return {"exact": scores, "gates": gates, "steps": last}
