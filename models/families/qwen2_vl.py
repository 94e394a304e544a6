"""Qwen2-VL and Qwen2.5-VL: native resolution, 2x2 merger, 3-D positions, no CLS, no newline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.models.families.base import (
    IMAGE_AND_VIDEO,
    CapturedImage,
    Family,
    VisionCapture,
    grids_layout,
    list_of_layers,
)
from vtprune.models.signals import received_attention


class Qwen2VL(Family):
    """``Qwen2VLForConditionalGeneration``: a token stands for ``merge x merge`` patches."""

    model_types = ("qwen2_vl",)
    scalar_positions = False
    encoders = IMAGE_AND_VIDEO
    has_cls = False

    def projector(self) -> nn.Module:
        return self.core.visual.merger

    def vision_layers(self) -> nn.ModuleList:
        return list_of_layers(self.core.visual)

    def scored_block(self) -> int:
        """Encoder block whose attention the signals read: the last that sees a whole frame."""
        return len(self.vision_layers()) - 1

    def vision_taps(self, needs: frozenset[str]) -> dict[str, nn.Module]:
        if not needs & {"received_attention", "vision_keys"}:
            return {}
        return {"features": self.vision_layers()[self.scored_block()].attn}

    def window_order(self, grids: Tensor) -> Tensor | None:
        """Merged token computed at every place of the encoder's own order; None = raster order."""
        return None

    def images(
        self,
        modality: str,
        arguments: Mapping[str, Any],
        features: list[Tensor],
        capture: VisionCapture,
    ) -> list[CapturedImage]:
        grids = arguments[f"{modality}_grid_thw"]
        merge = self.model.config.vision_config.spatial_merge_size
        order = self.window_order(grids)
        found, start = [], 0
        for frames, height, width in torch.as_tensor(grids).tolist():
            kind = "image" if modality == "image" else "frame"
            layout = grids_layout(kind, frames, height // merge, width // merge)
            place = slice(start, start + len(layout))
            own = features[len(found)]
            found.append(CapturedImage(layout, self._signals(capture, place, order, own, layout)))
            start += len(layout)
        return found

    def _signals(
        self, capture: VisionCapture, place: slice, order: Tensor | None, own: Tensor, layout: Any
    ) -> dict[str, Callable[[], Tensor]]:
        """Per merged token ``[frames, P, ...]``: the mean over its patches, in raster order."""
        merge = self.model.config.vision_config.spatial_merge_size ** 2
        shape = (layout.n_tiles, layout.patch_grid[0] * layout.patch_grid[1])

        def merged(patches: Tensor) -> Tensor:
            tokens = patches.reshape(-1, merge, *patches.shape[1:]).mean(1)
            if order is not None:
                tokens = tokens[torch.argsort(order.to(tokens.device))]
            return tokens[place].unflatten(0, shape)

        def received() -> Tensor:
            calls = [
                received_attention(q, k, scaling)[0]
                for q, k, scaling in capture.attention["features"]
            ]
            return merged(torch.cat(calls))

        def keys() -> Tensor:
            # Rotated, as the attention compares them; mean over heads and patches.
            calls = [k[0].mean(0) for _, k, _ in capture.attention["features"]]
            return merged(torch.cat(calls))

        found: dict[str, Callable[[], Tensor]] = {"tile_features": lambda: own.unflatten(0, shape)}
        if capture.projector_input is not None:
            found["vision_features"] = lambda: merged(capture.projector_input)
        if "features" in capture.attention:
            found["received_attention"] = received
            found["vision_keys"] = keys
        return found


class Qwen25VL(Qwen2VL):
    """``Qwen2_5_VLForConditionalGeneration``: windowed attention, tokens in window order."""

    model_types = ("qwen2_5_vl",)

    def scored_block(self) -> int:
        return max(self.core.visual.fullatt_block_indexes)

    def window_order(self, grids: Tensor) -> Tensor | None:
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import get_vision_window_index

        vision = self.core.visual
        order, _ = get_vision_window_index(
            grids,
            spatial_merge_size=vision.spatial_merge_size,
            window_size=vision.window_size,
            patch_size=vision.patch_size,
            kwargs={},
        )
        return torch.as_tensor(order)
