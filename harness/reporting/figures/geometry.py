"""Where on the image each visual token of a stored record lies; no torch.

Token order: the base view in raster order; with crops, then the mosaic of crops cut to the image,
each row followed by one row-end token.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image

from vtprune.harness.request.errors import HarnessError


@dataclass(frozen=True)
class Panel:
    """One grid of tokens over a region (left, top, right, bottom) of the image, as shares of it.

    ``tokens [rows, cols]`` are ranks among the sample's visual tokens.
    """

    name: str
    tokens: np.ndarray
    region: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)


def unpack(text: str, n: int) -> np.ndarray:
    """bool ``[n]`` from the stored base64 of packed bits."""
    bits = np.frombuffer(base64.b64decode(text), dtype=np.uint8)
    return np.unpackbits(bits, count=n).astype(bool)


def kept(record: Mapping[str, Any], layer: int | None = None) -> np.ndarray:
    """bool ``[V]``: tokens alive at ``layer``, by default behind the last drop."""
    alive = np.ones(record["visual_tokens"], dtype=bool)
    for start, text in record["kept"]:
        if layer is None or start <= layer:
            alive = unpack(text, record["visual_tokens"])
    return alive


def panels(record: Mapping[str, Any], size: tuple[int, int], model_type: str) -> list[Panel]:
    """The grids of a sample with one image of ``size`` (width, height).

    Raises:
        HarnessError: several images, or a layout that does not fit the number of tokens.
    """
    if len(record["grids"]) != 1:
        raise HarnessError(f"{len(record['grids'])} images: only single images are drawn")
    ((crops, rows, cols),) = record["grids"]
    total, base = record["visual_tokens"], rows * cols
    if total == base:
        region = _centre(size) if model_type == "llava" else (0.0, 0.0, 1.0, 1.0)
        return [Panel("image", np.arange(base).reshape(rows, cols), region)]
    found = canvas(crops - 1, (rows, cols), size, total - base)
    if found is None:
        raise HarnessError(f"{total} tokens of {crops} crops fit no layout of a {size} image")
    height, width = found
    whole = base + np.arange(height * (width + 1)).reshape(height, width + 1)
    return [
        Panel("base view", np.arange(base).reshape(rows, cols)),
        Panel("crops", whole[:, :width]),
    ]


def _centre(size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The square that a CLIP processor cuts out of the middle."""
    width, height = size
    side = min(width, height)
    left, top = (width - side) / 2 / width, (height - side) / 2 / height
    return left, top, 1 - left, 1 - top


def canvas(
    tiles: int, crop: tuple[int, int], size: tuple[int, int], tokens: int
) -> tuple[int, int] | None:  # fmt: skip
    """(rows, cols) of the mosaic without padding, for which rows x (cols + 1) is ``tokens``."""
    for down in range(1, tiles + 1):
        if tiles % down:
            continue
        rows, cols = unpadded(down * crop[0], tiles // down * crop[1], size)
        if rows * (cols + 1) == tokens:
            return rows, cols
    return None


def unpadded(rows: int, cols: int, size: tuple[int, int]) -> tuple[int, int]:
    """A grid of tokens without the rows or columns that show padding only."""
    width, height = size
    if width / height > cols / rows:
        inner = int(round(height * (cols / width), 7))
        return rows - 2 * ((rows - inner) // 2), cols
    inner = int(round(width * (rows / height), 7))
    return rows, cols - 2 * ((cols - inner) // 2)


def newline_kept(record: Mapping[str, Any], found: list[Panel]) -> tuple[int, int]:
    """(kept, all) row-end tokens."""
    inside = np.concatenate([panel.tokens.ravel() for panel in found])
    outside = np.setdiff1d(np.arange(record["visual_tokens"]), inside)
    return int(kept(record)[outside].sum()), len(outside)

SHADE = np.array([20, 24, 40], dtype=float)  # laid over what was removed
_VEIL = 0.78


def veiled(image: PIL.Image.Image, panel: Panel, kept: np.ndarray) -> np.ndarray:
    """The panel's part of the image, ``uint8 [H, W, 3]``, dark where tokens were removed."""
    width, height = image.size
    left, top, right, bottom = panel.region
    box = (round(left * width), round(top * height), round(right * width), round(bottom * height))
    grid = panel.tokens.shape
    # Enlarged so that every token has whole pixels and sharp edges.
    scale = max(1, -(-224 // max(grid)))
    part = image.crop(box).resize((grid[1] * scale, grid[0] * scale), PIL.Image.Resampling.LANCZOS)
    pixels = np.asarray(part, dtype=float)
    gone = ~kept[panel.tokens]
    gone = gone.repeat(scale, axis=0).repeat(scale, axis=1)[..., None]
    return np.where(gone, (1 - _VEIL) * pixels + _VEIL * SHADE, pixels).astype(np.uint8)
