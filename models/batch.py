"""The prompts of one prefill, and small functions on arguments and pictures."""

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


@dataclass
class Prompts:
    """What is asked, one prompt a row. Attributes marked H live on the host.

    Attributes:
        ids: ``[B, L]`` H.
        valid: bool ``[B, L]`` H, False in the padding of the batch.
        codes: ``[B, L]`` H, modality of every column, 0 = text or padding.
        images: of every row, in prompt order.
        names: of every row; equal ones next to each other may be beams, or not.
        beams: rows per sample.
        foreground, questions: as given to ``PruningRun.begin``, per sample.
        records: one a row.
    """

    ids: Tensor
    valid: Tensor
    codes: Tensor
    images: list[list[CapturedImage]]
    names: list[str] = field(default_factory=list)
    beams: int = 1
    foreground: list[list[Tensor]] | None = None
    questions: list[str] | None = None
    records: list[SampleRecord] = field(default_factory=list)

    @property
    def visual(self) -> Tensor:
        """bool ``[B, L]`` H."""
        return self.codes > 0

    @functools.cached_property
    def columns(self) -> list[Tensor]:
        """Per row the columns of its visual tokens, int64 ``[V]`` H."""
        return [torch.nonzero(row).squeeze(1) for row in self.visual]

    @functools.cached_property
    def padded(self) -> bool:
        return not bool(self.valid.all())

    def sample(self, row: int) -> int:
        """Number of the sample that a row asks about."""
        return row // self.beams


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


def images_per_row(
    images: Mapping[str, list[CapturedImage]], modalities: list[str], codes: Tensor
) -> list[list[CapturedImage]]:
    """Deal images, in prompt order, to the rows whose placeholders they fill.

    Raises:
        PruningUnsupported: placeholders without an image, or an image without placeholders.
    """
    queues = [list(images.get(modality, ())) for modality in modalities]
    rows = []
    for row in codes.tolist():
        placeholders = [code for code in row if code > 0]
        mine, place = [], 0
        while place < len(placeholders):
            queue = queues[placeholders[place] - 1]
            if not queue:
                break
            mine.append(queue.pop(0))
            place += len(mine[-1].layout)
        if place != len(placeholders):
            raise PruningUnsupported(
                "visual tokens of the prompt do not match the encoded images: give the pictures "
                "of the whole prompt in one forward (no chunks)"
            )
        rows.append(mine)
    if any(queues):
        raise PruningUnsupported("more images were encoded than the prompt has places for")
    return rows


def once(signals: Mapping[str, Callable[[], Tensor]]) -> dict[str, Callable[[], Tensor]]:
    """Signals that are computed when first asked for; every crop of an image asks again."""
    return {name: functools.cache(compute) for name, compute in signals.items()}


def view_sizes(image: CapturedImage) -> list[int]:
    layout = image.layout
    real = ~layout.newline
    return [int((real & (layout.view == v)).sum()) for v in range(len(layout.kinds))]
