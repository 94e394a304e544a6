"""Pieces shared by the training stages: configurations, optimiser, schedule, checkpoints, data."""

from __future__ import annotations

import math
import multiprocessing as mp
import os
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from vtprune.harness.evaluation.data.mini import world

if TYPE_CHECKING:
    from transformers import CLIPVisionConfig, LlamaConfig

HIDDEN = 128
VISION_LAYERS = 5
TEXT_LAYERS = 6
FEATURE_LAYER = -2
IMAGE_TOKENS = world.GRID**2
PINPOINTS = [[112, 224], [224, 112], [224, 224]]
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


@dataclass(frozen=True)
class Budget:
    """Length and batch size of one stage."""

    steps: int
    batch: int
    lr: float
    warmup: int = 50


@dataclass(frozen=True)
class Run:
    """How a stage is carried out. `check` is the number of pictures of its last check."""

    device: str = "cpu"
    resume: bool = True
    bf16: bool = True
    worker: bool = True
    compiled: bool = False
    save_every: int = 150
    stop_after: int | None = None
    check: int = 256


def vision_config() -> CLIPVisionConfig:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=HIDDEN, intermediate_size=384, num_hidden_layers=VISION_LAYERS,
        num_attention_heads=4, image_size=world.TILE, patch_size=world.PATCH,
        hidden_act="gelu", projection_dim=HIDDEN,
    )  # fmt: skip


def text_config(vocab: int) -> LlamaConfig:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab, hidden_size=HIDDEN, intermediate_size=352,
        num_hidden_layers=TEXT_LAYERS, num_attention_heads=4, num_key_value_heads=4,
        head_dim=32, max_position_embeddings=2048, rms_norm_eps=1e-5, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )  # fmt: skip


def normalise(images: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 as CLIP's image processor scales it."""
    x = images.float().div(255.0)
    return ((x - MEAN.to(x.device)) / STD.to(x.device)).permute(0, 3, 1, 2).contiguous()


def seed_everything(seed: int) -> None:
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def optimiser(groups: list[tuple[nn.Module, float]], lr: float) -> torch.optim.AdamW:
    """AdamW with decay on matrices only; each module comes with a factor on the learning rate."""
    params = []
    for module, scale in groups:
        named = [p for p in module.parameters() if p.requires_grad]
        for decay, chosen in (
            (0.05, [p for p in named if p.ndim >= 2]),
            (0.0, [p for p in named if p.ndim < 2]),
        ):
            if chosen:
                params.append(
                    {"params": chosen, "weight_decay": decay, "scale": scale, "lr": lr * scale}
                )
    return torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.98), eps=1e-8)


def set_rate(opt: torch.optim.Optimizer, budget: Budget, step: int) -> None:
    """Linear warm-up, then a cosine down to 3 % of the peak."""
    if step < budget.warmup:
        factor = (step + 1) / budget.warmup
    else:
        done = (step - budget.warmup) / max(1, budget.steps - budget.warmup)
        factor = 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    for group in opt.param_groups:
        group["lr"] = budget.lr * factor * group["scale"]


def autocast(device: str, enabled: bool) -> torch.autocast:
    return torch.autocast(device.split(":")[0], torch.bfloat16, enabled=enabled)


def save_state(path: Path, **state: Any) -> None:
    """Write atomically: a killed run leaves either the old state or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".tmp{os.getpid()}")
    torch.save(state, scratch)
    os.replace(scratch, path)


def load_state(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=False)


def _produce(make: Callable[[int], Any], start: int, stop: int, out: Any) -> None:
    torch.set_num_threads(1)
    parent = os.getppid()
    for step in range(start, stop):
        batch = make(step)
        while os.getppid() == parent:  # a killed trainer must not leave its worker behind
            try:
                out.put(batch, timeout=5)
                break
            except queue.Full:
                continue
        else:
            os._exit(0)


def stream(make: Callable[[int], Any], start: int, stop: int, worker: bool = True) -> Iterator[Any]:
    """Batches `make(start) ... make(stop - 1)`, drawn ahead in one process when `worker` is set.

    A batch depends on its step number alone, so a resumed run sees the batches it would have seen.
    """
    if not worker:
        yield from map(make, range(start, stop))
        return
    context = mp.get_context("fork")
    box = context.Queue(maxsize=6)
    process = context.Process(target=_produce, args=(make, start, stop, box), daemon=True)
    process.start()
    try:
        for _ in range(start, stop):
            while True:
                try:
                    item = box.get(timeout=20)
                    break
                except queue.Empty:
                    if not process.is_alive():
                        raise RuntimeError("the data worker died") from None
            yield item
    finally:
        process.terminate()


def to_tensors(batch: dict[str, np.ndarray], device: str) -> dict[str, Tensor]:
    return {k: torch.from_numpy(np.ascontiguousarray(v)).to(device) for k, v in batch.items()}


def train_loop(
    name: str,
    out: Path,
    budget: Budget,
    run: Run,
    *,
    parts: dict[str, nn.Module],
    clip: tuple[tuple[str, ...], ...],
    make: Callable[[int], dict[str, np.ndarray]],
    loss_of: Callable[[int, dict[str, Tensor]], tuple[Tensor, dict[str, Any]]],
    report: Callable[[], Any] | None = None,
    rates: dict[str, float] | None = None,
) -> int:
    """Train `parts` to the end of the budget; returns the last step.

    State goes to `out/<name>.pt` every `run.save_every` steps and is picked up from there. Each
    group of `clip` has its gradients clipped together; `rates` scales the learning rate of parts.
    """
    opt = optimiser([(m, (rates or {}).get(k, 1.0)) for k, m in parts.items()], budget.lr)
    path, start = out / f"{name}.pt", 0
    if run.resume and path.exists():
        state = load_state(path)
        for key, module in parts.items():
            module.load_state_dict(state[key])
        opt.load_state_dict(state["opt"])
        start = state["step"]
    last = min(budget.steps, run.stop_after or budget.steps)

    def save(step: int) -> None:
        weights = {key: module.state_dict() for key, module in parts.items()}
        save_state(path, opt=opt.state_dict(), step=step, **weights)

    bar = tqdm(stream(make, start, last, run.worker), name, last, initial=start, mininterval=5)
    for step, raw in enumerate(bar, start):
        set_rate(opt, budget, step)
        with autocast(run.device, run.bf16):
            loss, shown = loss_of(step, to_tensors(raw, run.device))
        opt.zero_grad(set_to_none=True)
        loss.backward()
        for group in clip:
            nn.utils.clip_grad_norm_([p for k in group for p in parts[k].parameters()], 1.0)
        opt.step()
        if step % 20 == 0:
            bar.set_postfix(shown)
        if (step + 1) % run.save_every == 0 and step + 1 < last:
            save(step + 1)
            if report is not None:
                tqdm.write(f"{name} step {step + 1}: {report()}")
    save(last)
    return last
