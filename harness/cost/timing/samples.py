"""The fixed list of samples: one per image size, drawn pixels and text, the same in every run.

How long a model takes depends on sizes, not on what a picture shows, so nothing is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtprune.harness.cost import shapes
from vtprune.harness.cost.shapes import Size

if TYPE_CHECKING:
    from vtprune.methods import PruningMethod
    from vtprune.models.record import Unreduced

_ORDINARY = 1000  # text ids are drawn from here on; below lie the special tokens of most models


@dataclass(frozen=True)
class Sample:
    """One prompt with one image, in the form ``generate`` takes it, times a batch size."""

    name: str
    feed: dict[str, Any]
    visual_tokens: int
    prompt_length: int
    unreduced: list[Unreduced] | None = None  # per row, under a method that changes the picture


def draw(
    model: Any,
    sizes: Sequence[Size],
    text_tokens: int,
    batch: int,
    processor: dict[str, Any],
    method: PruningMethod | None = None,
) -> list[Sample]:
    """Samples for ``sizes`` (width, height), ``batch`` equal rows each.

    Args:
        text_tokens: tokens of the prompt around the image, half of them in front of it.
        processor: what the architecture file says of the image processor.
        method: makes the pictures smaller or leaves them out, if it is one that does.

    Raises:
        MethodError: a picture cannot be made as small as the method asks.
    """
    return [_sample(model, size, text_tokens, batch, processor, method) for size in sizes]


def _sample(
    model: Any, size: Size, text: int, batch: int, processor: dict[str, Any], method: Any
) -> Sample:
    generator = torch.Generator().manual_seed(size[0] * 100003 + size[1])
    with shapes.picture(model, size, processor, method) as shown:
        n = sum(map(len, shown.layouts))
        feed = {} if shown.inputs is None else _pixels(model, shown.inputs, batch, generator)
    ids = _prompt(model, n, text, generator).to(model.device).expand(batch, -1).contiguous()
    feed |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "image_grid_thw" in feed:
        feed["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
    accounts = None if shown.unreduced is None else [shown.unreduced] * batch
    return Sample(f"{size[0]}x{size[1]}", feed, n, ids.shape[1], accounts)


def _pixels(
    model: Any, shape: dict[str, Any], batch: int, generator: torch.Generator
) -> dict[str, Tensor]:
    one = torch.randn(shape["pixel_values"].shape, generator=generator)
    made = {"pixel_values": one.to(model.device, model.dtype)}
    made |= {k: v.to(model.device) for k, v in shape.items() if k != "pixel_values"}
    # Rows lie along the first dimension in every family.
    return {k: torch.cat([v] * batch) for k, v in made.items()}


def _prompt(model: Any, n: int, text: int, generator: torch.Generator) -> Tensor:
    config = model.config
    vocabulary = config.get_text_config().vocab_size
    low = min(_ORDINARY, vocabulary // 2)
    special = [config.image_token_id, getattr(config, "video_token_id", -1)]
    ids = torch.randint(low, vocabulary, (text,), generator=generator)
    ids[torch.isin(ids, torch.tensor(special))] = low - 1
    image = torch.full((n,), config.image_token_id)
    return torch.cat([ids[: text // 2], image, ids[text // 2 :]])[None]
