"""Run the model once per image and store what the records of a run do not hold.

Figures 1b and 5 need norms, scores after each propagation step and the foreground. One small file
per image keeps them; drawing then needs no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from vtprune.harness.cell.answerer import chat_inputs
from vtprune.harness.evaluation.engines.base import Question
from vtprune.methods import View
from vtprune.methods.foreground import attention_foreground
from vtprune.methods.gprune import GPrune, propagate
from vtprune.models import prune
from vtprune.models.load import VLM


@dataclass(frozen=True, kw_only=True)
class Probe(GPrune):
    """G-Prune that writes down what it sees; it selects exactly the same tokens."""

    steps: tuple[int, ...] = (0, 1, 2, 5, 10, 50)
    seen: list[dict[str, Any]] = field(default_factory=list, compare=False)
    with_foreground: bool = True

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("cls_attention",) if self.with_foreground else ()

    def score(self, view: View) -> torch.Tensor:
        graph = self.graph(view.features)
        start = self.initial(view).to(graph.weights.dtype)
        flow = [propagate(graph, start, steps) / graph.degree for steps in self.steps]
        self.seen.append(
            {
                "grid": np.array(view.grid or (1, len(view))),
                "norm": start.float().cpu().numpy(),
                "flow": torch.stack(flow).float().cpu().numpy(),
                "degree": graph.degree.cpu().numpy(),
                "foreground": self._foreground(view),
            }
        )
        return super().score(view)

    def _foreground(self, view: View) -> np.ndarray:
        if not self.with_foreground:
            return np.zeros(len(view), dtype=bool)
        attention = view.signal("cls_attention").float().reshape(len(view), -1).mean(dim=1)
        return attention_foreground(attention, 0.5).cpu().numpy()


def run(
    vlm: VLM, question: str, image: PIL.Image.Image, file: Path, *, options: dict[str, Any] | None
) -> Path:
    """Probe one image and store the result as ``file`` (.npz)."""
    probe = Probe(ratio=0.5, seen=[], **(options or {}))
    asked = Question(0, "probe:0", question, lambda: [image])
    with prune(vlm.model, probe) as pruning:
        pruning.begin(["probe:0"])
        with torch.inference_mode():
            vlm.model.generate(
                **chat_inputs(vlm, [asked], [[image]]), max_new_tokens=1, do_sample=False
            )
    return store(file, probe, question, image)


def store(file: Path, probe: Probe, question: str, image: PIL.Image.Image) -> Path:
    """Write what a probe saw."""
    content: dict[str, Any] = {
        "steps": np.array(probe.steps),
        "views": len(probe.seen),
        "question": question,
        "image": np.asarray(image.resize(_shown(image.size))),
    }
    for number, view in enumerate(probe.seen):
        content |= {f"{name}_{number}": value for name, value in view.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, **content)
    return file


def _shown(size: Sequence[int], side: int = 336) -> tuple[int, int]:
    scale = side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
