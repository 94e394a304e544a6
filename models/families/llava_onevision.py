"""LLaVA-OneVision: anyres with SigLIP; large canvases are shrunk, videos pooled per frame."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vtprune.methods import TokenLayout
from vtprune.models.families.base import (
    IMAGE_AND_VIDEO,
    Family,
    Picture,
    grids_layout,
)
from vtprune.models.families.llava_next import LlavaNext, anyres_layout, sizes_of

#: mark of a token behind which no single encoder token lies
SHRUNK = -2


class LlavaOnevision(LlavaNext):
    """``LlavaOnevisionForConditionalGeneration``."""

    hears = Family.hears
    encoders = IMAGE_AND_VIDEO

    def pictures(
        self, modality: str, arguments: Mapping[str, Any], features: list[Tensor]
    ) -> list[Picture]:
        self.check_call(arguments)
        if modality == "video":
            return self._videos(arguments, features)
        counts = arguments.get("batch_num_images")
        sizes = sizes_of(arguments)
        # Several images in one prompt are encoded as one crop each.
        alone = [True] * len(sizes)
        if counts is not None:
            alone = [n == 1 for n in torch.as_tensor(counts).tolist() for _ in range(n)]
        aspect = arguments.get("vision_aspect_ratio") or self.model.config.vision_aspect_ratio
        found, start = [], 0
        for size, tiled in zip(sizes, alone, strict=True):
            layout = self._onevision_layout(size, tiled, aspect)
            place = slice(start, start + layout.n_tiles)
            shrunk = bool((layout.tile == SHRUNK).any())
            pack = functools.partial(self._packed, size, aspect) if shrunk else None
            found.append(Picture(layout, place, pack=pack))
            start = place.stop
        return found

    def _videos(self, arguments: Mapping[str, Any], features: list[Tensor]) -> list[Picture]:
        """Frames are crops of the call, pooled behind the projector, and so are their signals."""
        frames = arguments["pixel_values_videos"].shape[1]
        return [
            Picture(
                _video_layout(len(one), frames),
                slice(number * frames, (number + 1) * frames),
                pool=self._pooled,
            )
            for number, one in enumerate(features)
        ]

    def _pooled(self, values: Tensor) -> Tensor:
        """``[frames, P, ...]`` through the library's pooling: ``[frames, P', ...]``."""
        flat = values.float().flatten(2) if values.dim() > 2 else values.float()[..., None]
        pooled = self.core.apply_pooling(flat)
        return pooled.reshape(*pooled.shape[:2], *values.shape[2:])

    def _packed(
        self, size: Sequence[int], aspect: str, values: Tensor, row_end: float = 0.0
    ) -> Tensor:
        """``[tiles, P, ...]`` through the library's packing: mosaic, unpad, shrink, row ends."""
        flat = values.float().flatten(2) if values.dim() > 2 else values.float()[..., None]
        packed, _ = self.core.pack_image_features(
            [flat],
            [size],
            image_newline=flat.new_full((flat.shape[-1],), row_end),
            vision_aspect_ratio=aspect,
        )
        return packed[0].reshape(-1, *values.shape[2:])

    def layout(self, height: int, width: int) -> TokenLayout:
        return self._onevision_layout(
            (height, width), True, self.model.config.vision_aspect_ratio
        )

    def _onevision_layout(self, size: Sequence[int], tiled: bool, aspect: str) -> TokenLayout:
        grid = self.tile_grid(size) if tiled else None
        marks = self.marks(1 + (grid[0] * grid[1] if grid else 0))
        packed = self._packed(size, aspect, marks, -1)
        exact = len(packed) == len(self._packed(size, f"anyres_max_{10**6}", marks, -1))
        if not exact:
            canvas = torch.arange(len(packed)) >= self.crop_side**2
            inside = canvas & (packed[:, 0] != -1)
            packed = packed.masked_fill(inside[:, None], SHRUNK)
        tile, patch = packed.long().unbind(-1)
        return anyres_layout(tile, patch, self.crop_side, grid)


def _video_layout(n_tokens: int, frames: int) -> TokenLayout:
    """Frames of a square grid each, and one newline at the very end."""
    side = math.isqrt((n_tokens - 1) // frames)
    plain = grids_layout("frame", frames, side, side)
    end = torch.tensor([-1])
    last = torch.tensor([frames - 1])
    return TokenLayout(
        tile=torch.cat([plain.tile, end]),
        patch=torch.cat([plain.patch, end]),
        view=torch.cat([plain.view, last]),
        row=torch.cat([plain.row, torch.tensor([side - 1])]),
        col=torch.cat([plain.col, torch.tensor([side])]),
        kinds=plain.kinds,
        grids=plain.grids,
        n_tiles=frames,
        patch_grid=(side, side),
    )
