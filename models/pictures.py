"""What becomes of a picture before the processor sees it, and limits the processor is given.

Clients of the evaluation engines do not hand a picture to the processor as it is: one encodes it as
JPEG once more, both resize it with Pillow where the processor would resize with torch, LLaVA-1.5's
own scripts pad it to a square. Each step changes pixels, the limits change the number of tokens.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vtprune.models.errors import ModelLoadError

#: steps in front of the processor; every other option is the processor's own
STEPS = ("do_pad", "jpeg_quality", "resize_min_pixels", "resize_max_pixels")


@dataclass(frozen=True)
class Preparation:
    """The steps, in the order of the fields.

    Attributes:
        background: colour of the padding, 0 ... 255 for each channel; None: no padding.
        jpeg_quality: the picture is written as JPEG and read again; None: it is not.
        resize: fewest and most pixels that Pillow's bicubic resizing leaves, both sides a multiple
            of ``cell``; None: no resizing.
        cell: pixels along a side of a visual token.
    """

    background: tuple[int, ...] | None = None
    jpeg_quality: int | None = None
    resize: tuple[int, int] | None = None
    cell: int = 1

    def __call__(self, picture: Any) -> Any:
        """The picture (RGB, PIL) as the processor is to get it."""
        if self.background is not None:
            picture = _padded(picture, self.background)
        if self.jpeg_quality is not None:
            picture = _encoded(picture, self.jpeg_quality)
        if self.resize is not None:
            height, width = self.sized(picture.height, picture.width)
            picture = picture.resize((width, height))  # bicubic, as qwen_vl_utils leaves it
        return picture

    def sized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after all steps, in pixels."""
        if self.background is not None:
            height = width = max(height, width)
        if self.resize is not None:
            height, width = _within(height, width, self.cell, *self.resize)
        return height, width


def preparation(options: Mapping[str, Any], config: Any, processor: Any = None) -> Preparation:
    """The steps that options of ``model.processor`` ask for.

    Args:
        options: those that are set.
        config: of the model.
        processor: has the mean colour; without one padding is black, which only its size shows.

    Raises:
        ModelLoadError: the processor names no mean colour to pad with.
    """
    background = None
    if options.get("do_pad"):
        background = (0, 0, 0) if processor is None else _mean(processor)
    limits = options.get("resize_min_pixels"), options.get("resize_max_pixels")
    vision = config.vision_config
    cell = vision.patch_size * getattr(vision, "spatial_merge_size", 1)
    resize = None if None in limits else (int(limits[0]), int(limits[1]))  # type: ignore[arg-type]
    return Preparation(background, options.get("jpeg_quality"), resize, cell)


def _mean(processor: Any) -> tuple[int, ...]:
    """Mean colour of the pictures an encoder was trained with, 0 ... 255 for each channel."""
    mean = getattr(processor.image_processor, "image_mean", None)
    if not mean:
        raise ModelLoadError("model.processor.do_pad: the processor has no image_mean")
    return tuple(int(value * 255) for value in mean)


def limit(processor: Any, options: Mapping[str, Any]) -> None:
    """Give a processor the pixel limits and crops that are set; in place, it is ours alone."""
    images = processor.image_processor
    size = dict(images.size) if getattr(images, "size", None) else {}
    for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        if options.get(name) is not None:
            size[edge] = options[name]
            if hasattr(images, name):
                setattr(images, name, options[name])
            images.size = type(images.size)(**size)
    if options.get("image_grid_pinpoints") is not None:
        images.image_grid_pinpoints = options["image_grid_pinpoints"]


def configured(config: Any, options: Mapping[str, Any]) -> Any:
    """The model's config with the crops its processor cuts; the two must agree."""
    if options.get("image_grid_pinpoints") is not None:
        config.image_grid_pinpoints = [list(pair) for pair in options["image_grid_pinpoints"]]
    return config


def prepared(steps: Preparation, rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """The pictures of every row after the steps."""
    return [[steps(picture) for picture in row] for row in rows]


def _within(height: int, width: int, cell: int, least: int, most: int) -> tuple[int, int]:
    """Sides that are multiples of ``cell``, with an area within the limits, nearly in proportion.

    As ``smart_resize`` of qwen_vl_utils, which, unlike the library's function of that name, never
    rounds a side to nothing.
    """
    rows, cols = (max(1, round(side / cell)) for side in (height, width))
    if rows * cols * cell**2 > most:
        shrink = math.sqrt(height * width / most)
        rows, cols = (max(1, math.floor(side / shrink / cell)) for side in (height, width))
    elif rows * cols * cell**2 < least:
        grow = math.sqrt(least / (height * width))
        rows, cols = (math.ceil(side * grow / cell) for side in (height, width))
    return rows * cell, cols * cell


def _padded(picture: Any, colour: tuple[int, ...]) -> Any:
    """In the middle of a square of the mean colour."""
    from PIL import Image

    side = max(picture.size)
    if picture.width == picture.height:
        return picture
    square = Image.new("RGB", (side, side), colour)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def _encoded(picture: Any, quality: int) -> Any:
    from PIL import Image

    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=quality)
    stream.seek(0)
    return Image.open(stream).convert("RGB")
