"""LLaVA-OneVision: anyres with SigLIP; large canvases are shrunk, videos pooled per frame."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from methods.base import TokenLayout
from models.families.base import (
    IMAGE_AND_VIDEO,
    CapturedImage,
    VisionCapture,
    grids_layout,
)
from models.families.llava_next import LlavaNext, anyres_layout


class LlavaOnevision(LlavaNext):
    """``LlavaOnevisionForConditionalGeneration``."""

    model_types = ("llava_onevision",)
    encoders = IMAGE_AND_VIDEO

    def images(
        self,
        modality: str,
        arguments: Mapping[str, Any],
        features: list[Tensor],
        capture: VisionCapture,
    ) -> list[CapturedImage]:
        if modality == "video":
            frames = arguments["pixel_values_videos"].shape[1]
            return [CapturedImage(_video_layout(len(one), frames)) for one in features]
        counts = arguments.get("batch_num_images")
        sizes = arguments["image_sizes"]
        # Several images in one prompt are encoded as one crop each.
        alone = [True] * len(sizes)
        if counts is not None:
            alone = [n == 1 for n in counts for _ in range(n)]
        aspect = arguments.get("vision_aspect_ratio") or self.model.config.vision_aspect_ratio
        found, start = [], 0
        for size, tiled in zip(sizes, alone, strict=True):
            layout, exact = self._onevision_layout(size, tiled, aspect)
            stop = start + layout.n_tiles
            # A shrunk canvas has no encoder token per token, so it has no per-token signals.
            signals = self.signals(capture, start, stop) if exact else {}
            found.append(CapturedImage(layout, signals))
            start = stop
        return found

    def _onevision_layout(self, size: Any, tiled: bool, aspect: str) -> tuple[TokenLayout, bool]:
        grid = self.tile_grid(size) if tiled else None
        n_tiles = 1 + (grid[0] * grid[1] if grid else 0)
        if grid == (1, 1) and n_tiles == 1:
            grid = None

        def pack(limit: str) -> Tensor:
            packed, _ = self.core.pack_image_features(
                [self.marks(n_tiles).float()],
                [torch.as_tensor(size).cpu()],
                image_newline=torch.tensor([-1.0, -1.0]),
                vision_aspect_ratio=limit,
            )
            return packed[0]

        marks, unshrunk = pack(aspect), pack(f"anyres_max_{10**6}")
        exact = len(marks) == len(unshrunk)
        if not exact:
            canvas = torch.arange(len(marks)) >= self.side() ** 2
            newline = marks[:, 0] == -1
            marks = torch.where((canvas & ~newline)[:, None], torch.tensor(-2.0), marks)
        tile, patch = marks.long().unbind(-1)
        return anyres_layout(tile, patch, self.side(), grid), exact


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
