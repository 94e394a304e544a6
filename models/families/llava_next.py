"""LLaVA-NeXT (anyres): a base view, a mosaic of crops cut to the image, one newline per row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vtprune.methods import TokenLayout
from vtprune.models.families.base import Picture
from vtprune.models.families.llava import Llava


class LlavaNext(Llava):
    """``LlavaNextForConditionalGeneration``."""

    def pictures(
        self, modality: str, arguments: Mapping[str, Any], features: list[Tensor]
    ) -> list[Picture]:
        self.check_call(arguments)
        found, start = [], 0
        for size in sizes_of(arguments):
            layout = self.layout(*size)
            found.append(Picture(layout, slice(start, start + layout.n_tiles)))
            start += layout.n_tiles
        return found

    def blank(self, height: int, width: int, processor: Mapping[str, Any]) -> dict[str, Any]:
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        config = self.model.config
        side = config.vision_config.image_size
        crops = image_size_to_num_patches([height, width], config.image_grid_pinpoints, side)
        pixels = torch.empty(1, crops, 3, side, side, device="meta")
        return {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])}

    def layout(self, height: int, width: int) -> TokenLayout:
        size = (height, width)
        return self._packed_layout(size, self.tile_grid(size))

    def tile_grid(self, size: Sequence[int]) -> tuple[int, int]:
        """(rows, cols) of the mosaic that the library chooses for an image of (height, width)."""
        from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

        config = self.model.config
        grid = get_anyres_image_grid_shape(
            size, config.image_grid_pinpoints, config.vision_config.image_size
        )
        return int(grid[0]), int(grid[1])

    def marks(self, n_tiles: int) -> Tensor:
        """``[tiles, P, 2]`` every encoder token marked with its (tile, patch)."""
        patches = self.crop_side**2
        tile = torch.arange(n_tiles)[:, None].expand(n_tiles, patches)
        return torch.stack([tile, torch.arange(patches).expand(n_tiles, patches)], dim=-1)

    def _packed_layout(self, size: Sequence[int], tile_grid: tuple[int, int]) -> TokenLayout:
        # Marks go through the library's own packing, so that its rounding is ours.
        packed, _ = self.core.pack_image_features(
            [self.marks(1 + tile_grid[0] * tile_grid[1])],
            [size],
            vision_feature_select_strategy=self.model.config.vision_feature_select_strategy,
            image_newline=torch.tensor([-1, -1]),
        )
        tile, patch = packed[0].unbind(-1)
        return anyres_layout(tile, patch, self.crop_side, tile_grid)


def sizes_of(arguments: Mapping[str, Any]) -> list[list[int]]:
    """(height, width) of the pictures of a call; they leave the device once, all together."""
    return torch.as_tensor(arguments["image_sizes"]).tolist()


def anyres_layout(
    tile: Tensor, patch: Tensor, side: int, tile_grid: tuple[int, int] | None
) -> TokenLayout:
    """Layout of a packed anyres image from its tokens' marks; newline tokens are marked -1."""
    base = side * side
    number = torch.arange(len(tile))
    rows = int((tile[base:] == -1).sum())
    n_tiles = 1 + (tile_grid[0] * tile_grid[1] if tile_grid else 0)
    if tile_grid is None or rows == 0:
        # One crop and a single newline behind it, or a canvas so thin that nothing of it is left:
        # all there is belongs to the base view.
        return TokenLayout(
            tile, patch, torch.zeros_like(number), number // side, number % side,
            ("base",), ((side, side),), n_tiles, (side, side), tile_grid,
        )  # fmt: skip
    view = (number >= base).long()
    width = (len(tile) - base) // rows
    return TokenLayout(
        tile=tile,
        patch=patch,
        view=view,
        row=torch.where(view == 1, (number - base) // width, number // side),
        col=torch.where(view == 1, (number - base) % width, number % side),
        kinds=("base", "canvas"),
        grids=((side, side), (rows, width - 1)),
        n_tiles=n_tiles,
        patch_grid=(side, side),
        tile_grid=tile_grid,
    )
