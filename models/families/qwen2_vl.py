"""Qwen2-VL and Qwen2.5-VL: native resolution, 2x2 merger, 3-D positions, no CLS, no newline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.methods import TokenLayout
from vtprune.models.errors import PruningUnsupported
from vtprune.models.families.base import (
    IMAGE_AND_VIDEO,
    Family,
    Picture,
    grids_layout,
    joined,
    list_of_layers,
)


class Qwen2VL(Family):
    """``Qwen2VLForConditionalGeneration``: a token stands for ``merge x merge`` patches.

    Patches of one call stand in one sequence, those of a token next to each other, and attend to
    each other within a segment: a frame, or a window of it.
    """

    scalar_positions = False
    encoders = IMAGE_AND_VIDEO

    @property
    def has_cls(self) -> bool:
        return False

    @property
    def merged(self) -> int:
        """Patches behind one token."""
        return self.model.config.vision_config.spatial_merge_size ** 2

    def projector(self) -> nn.Module:
        return self.core.visual.merger

    def blank(self, height: int, width: int, processor: Mapping[str, Any]) -> dict[str, Any]:
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        vision = self.model.config.vision_config
        patch, merge = vision.patch_size, vision.spatial_merge_size
        limits = {k: processor[k] for k in ("min_pixels", "max_pixels") if k in processor}
        rows, cols = smart_resize(height, width, factor=patch * merge, **limits)
        rows, cols = rows // patch, cols // patch
        inputs = vision.in_channels * vision.temporal_patch_size * patch**2
        pixels = torch.empty(rows * cols, inputs, device="meta")
        return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, rows, cols]])}

    def encode(self, inputs: Mapping[str, Any]) -> Any:
        pixels = inputs["pixel_values"]
        positions = torch.empty(len(pixels), 2, device="meta")
        return self.core.visual(
            pixels, grid_thw=inputs["image_grid_thw"], position_ids=positions
        )

    def vision_layers(self) -> Any:
        return list_of_layers(self.core.visual)

    def vision_attention(self, layer: nn.Module) -> nn.Module:
        return layer.get_submodule("attn")

    def feature_layer(self) -> int:
        """The last encoder layer that sees a whole frame."""
        return len(self.vision_layers()) - 1

    def window_order(self, grids: Tensor) -> Tensor | None:
        """Merged token computed at every place of the encoder's own order; None = raster order."""
        return None

    def pictures(
        self, modality: str, arguments: Mapping[str, Any], features: list[Tensor]
    ) -> list[Picture]:
        grids = torch.as_tensor(arguments[f"{modality}_grid_thw"]).cpu()
        merge = self.model.config.vision_config.spatial_merge_size
        order = self.window_order(grids)
        kind = "image" if modality == "image" else "frame"
        found, start = [], 0
        for frames, height, width in grids.tolist():
            layout = grids_layout(kind, frames, height // merge, width // merge)
            place = slice(start, start + len(layout))
            own = None if order is None else order[place] - start
            found.append(Picture(layout, place, own))
            start = place.stop
        return found

    @property
    def cell(self) -> int:
        vision = self.model.config.vision_config
        return vision.patch_size * vision.spatial_merge_size

    def layout(self, height: int, width: int) -> TokenLayout:
        return grids_layout("image", 1, height // self.cell, width // self.cell)

    def fitted(self, height: int, width: int, processor: Any) -> tuple[int, int]:
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        least, most = _pixels(processor)
        return smart_resize(height, width, factor=self.cell, min_pixels=least, max_pixels=most)

    def fewest(self, processor: Any) -> int:
        return -(-_pixels(processor)[0] // self.cell**2)

    def own(self, picture: Picture, source: str, values: list[Any]) -> list[Any]:
        """Segments, or positions of the one sequence; no segment reaches over two pictures."""
        if source == "projector_out":
            return [values[0][picture.place][None]]
        start, stop = picture.place.start * self.merged, picture.place.stop * self.merged
        if source != "attention":
            return [values[0][start:stop][None]]
        mine, begin = [], 0
        for heard in values:
            end = begin + heard.q.shape[2]
            if start <= begin and end <= stop:
                mine.append(heard)
            begin = end
        if sum(heard.q.shape[2] for heard in mine) != stop - start:
            raise PruningUnsupported(
                "the encoder attends across pictures, or was heard as if it did; its attention "
                "cannot be read picture by picture"
            )
        return mine

    def per_token(self, picture: Picture, source: str, values: list[Tensor]) -> Tensor:
        tokens = joined(values, dim=1)[0]
        if source != "projector_out":
            tokens = tokens.unflatten(0, (-1, self.merged)).mean(1)
        if picture.order is not None:
            tokens = tokens[torch.argsort(picture.order).to(tokens.device)]
        rows, cols = picture.layout.patch_grid
        return tokens.unflatten(0, (picture.layout.n_tiles, rows * cols))


def _pixels(processor: Any) -> tuple[int, int]:
    """Fewest and most pixels that a native-resolution processor makes of a picture."""
    size = processor.image_processor.size
    return size["shortest_edge"], size["longest_edge"]


class Qwen25VL(Qwen2VL):
    """``Qwen2_5_VLForConditionalGeneration``: windowed attention, tokens in window order."""

    def feature_layer(self) -> int:
        return max(self.core.visual.fullatt_block_indexes)

    def window_order(self, grids: Tensor) -> Tensor | None:
        from transformers.vision_utils import get_vision_window_index

        vision = self.core.visual
        order, _ = get_vision_window_index(
            grids,
            spatial_merge_size=vision.spatial_merge_size,
            window_size=vision.window_size,
            patch_size=vision.patch_size,
            kwargs={},
        )
        return torch.as_tensor(order)
