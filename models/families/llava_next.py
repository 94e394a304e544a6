"""LLaVA-NeXT (anyres): a base view, a mosaic of crops cut to the image, one newline per row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from methods.base import TokenLayout
from models.families.base import CapturedImage, VisionCapture
from models.families.llava import Llava, encoder_signals


class LlavaNext(Llava):
    """``LlavaNextForConditionalGeneration``."""

    model_types = ("llava_next",)

    def images(
        self, arguments: Mapping[str, Any], features: list[Tensor], capture: VisionCapture
    ) -> list[CapturedImage]:
        found, start = [], 0
        for one, size in zip(features, arguments["image_sizes"], strict=True):
            layout = self._anyres_layout(size)
            stop = start + layout.n_tiles
            found.append(CapturedImage(layout, one, encoder_signals(capture, start, stop)))
            start = stop
        return found

    def _anyres_layout(self, size: Tensor) -> TokenLayout:
        """Push token numbers through the library's own packing, so that its rounding is ours."""
        from transformers.models.llava_next.modeling_llava_next import (
            get_anyres_image_grid_shape,
            image_size_to_num_patches,
        )

        config = self.model.config
        side = config.vision_config.image_size // config.vision_config.patch_size
        size = torch.as_tensor(size).cpu()
        crop = config.vision_config.image_size
        n_tiles = image_size_to_num_patches(size, config.image_grid_pinpoints, crop)
        tile = torch.arange(n_tiles)[:, None].expand(n_tiles, side * side)
        patch = torch.arange(side * side).expand(n_tiles, side * side)
        packed, _ = self.core.pack_image_features(
            [torch.stack([tile, patch], dim=-1)],
            [size],
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            image_newline=torch.tensor([-1, -1]),
        )
        tile, patch = packed[0].unbind(-1)
        grid = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, crop)
        return _layout(tile, patch, n_tiles, side, grid)


def _layout(
    tile: Tensor, patch: Tensor, n_tiles: int, side: int, tile_grid: tuple[int, int]
) -> TokenLayout:
    base = side * side
    number = torch.arange(len(tile))
    view = (number >= base).long()
    kinds, grids = ("base",), ((side, side),)
    row, col = number // side, number % side
    if n_tiles > 1:
        rows = int((tile[base:] < 0).sum())
        width = (len(tile) - base) // rows
        row = torch.where(view == 1, (number - base) // width, row)
        col = torch.where(view == 1, (number - base) % width, col)
        kinds, grids = ("base", "canvas"), (*grids, (rows, width - 1))
    else:
        # A single-crop image carries one newline at its end; it belongs to the base view.
        view = torch.zeros_like(number)
    return TokenLayout(
        tile=tile,
        patch=patch,
        view=view,
        row=row,
        col=col,
        kinds=kinds,
        grids=grids,
        n_tiles=n_tiles,
        patch_grid=(side, side),
        tile_grid=tuple(int(v) for v in tile_grid) if n_tiles > 1 else None,
    )
