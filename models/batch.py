"""State of one batch from its prefill to its last decoding step, and small functions on it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vtprune.models.errors import PruningUnsupported
from vtprune.models.families import CapturedImage
from vtprune.models.record import SampleRecord
from vtprune.models.signals import Heard


@dataclass
class Slots:
    """Columns of one layer's sequence."""

    entry: Tensor  # [B, M] entry column of every slot
    valid: Tensor  # [B, M]
    shift: Tensor  # [B] what `compact` positions subtract while decoding


@dataclass
class Batch:
    input_ids: Tensor
    cacheless: bool
    codes: Tensor  # [B, L] modality of every prompt column, 0 = text
    visual: Tensor  # bool [B, L], prompt coordinates
    sample_ids: list[str]
    grows: bool  # a cache-less decoding step of the batch before
    repeats: bool  # ... whose decision stands
    images: list[list[CapturedImage]] = field(default_factory=list)
    foreground: list[list[Tensor]] | None = None
    questions: list[str] | None = None
    records: list[SampleRecord] = field(default_factory=list)
    prompt: Tensor | None = None  # [B, M] prompt column of every entry column
    entry_valid: Tensor | None = None
    entry_positions: Tensor | None = None
    entry_visual: Tensor | None = None
    shortened: bool = False  # tokens left before layer 0
    shift: Tensor | None = None
    last_position: Tensor | None = None
    plans: list[tuple[int, ...]] | None = None
    slots: Slots | None = None
    layers: dict[int, Slots] = field(default_factory=dict)
    tapped: Heard | None = None
    step_positions: Tensor | None = None
    embeddings: Tensor | None = None  # what entered layer 0, if a method asks for it
    prefilling: bool = True


def by_name(
    signature: inspect.Signature, args: tuple, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments by name; some families pass ``input_ids`` positionally."""
    return {**dict(zip(signature.parameters, args, strict=False)), **kwargs}


def row_positions(position_ids: Tensor | None, embeds: Tensor) -> Tensor:
    """One position per token ``[B, n]``; of m-rope planes the largest (decode goes on from it)."""
    if position_ids is None:
        return torch.arange(embeds.shape[1], device=embeds.device).expand(len(embeds), -1)
    if position_ids.dim() == 3:
        position_ids = position_ids[-3:].amax(0)
    return position_ids.expand(len(embeds), -1)


def extended(valid: Tensor, grown: int) -> Tensor:
    """``valid [B, M]`` followed by ``grown`` generated tokens, all visible."""
    return torch.cat([valid, valid.new_ones(len(valid), grown)], dim=1)


def images_per_row(
    images: dict[str, list[CapturedImage]], modalities: list[str], codes: Tensor
) -> list[list[CapturedImage]]:
    """Deal images, in prompt order, to the rows whose placeholders they fill."""
    queues = [list(images.get(modality, ())) for modality in modalities]
    rows = []
    for row in codes:
        placeholders = row[row > 0].tolist()
        mine, place = [], 0
        while place < len(placeholders):
            queue = queues[placeholders[place] - 1]
            if not queue:
                break
            mine.append(queue.pop(0))
            place += len(mine[-1].layout)
        if place != len(placeholders):
            raise PruningUnsupported("visual tokens of the prompt do not match the encoded images")
        rows.append(mine)
    if any(queues):
        raise PruningUnsupported("more images were encoded than the prompt has places for")
    return rows


def extends(before: Batch, ids: Tensor) -> bool:
    """``ids`` are the prompts of the batch before with more tokens behind them."""
    old = before.input_ids
    same_rows = ids.shape[0] == old.shape[0] and ids.shape[1] > old.shape[1]
    return same_rows and torch.equal(ids[:, : old.shape[1]], old)


def once(signals: Mapping[str, Callable[[], Tensor]]) -> dict[str, Callable[[], Tensor]]:
    """Signals that are computed when first asked for; every crop of an image asks again."""
    return {name: functools.cache(compute) for name, compute in signals.items()}


def view_sizes(image: CapturedImage) -> list[int]:
    layout = image.layout
    real = ~layout.newline
    return [int((real & (layout.view == v)).sum()) for v in range(len(layout.kinds))]


def beams_per_sample(sample_ids: list[str]) -> int:
    """Rows per sample: equal names next to each other are beams of one sample."""
    runs = 1
    while runs < len(sample_ids) and sample_ids[runs] == sample_ids[0]:
        runs += 1
    return runs if len(sample_ids) % runs == 0 else 1
