"""LLaVA-1.5: one crop per image, one token per patch, no newline."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from methods.base import TokenLayout
from models.errors import PruningUnsupported
from models.families.base import (
    CapturedImage,
    Family,
    VisionCapture,
    grids_layout,
    list_of_layers,
)
from models.signals import cls_rows, received_attention


class Llava(Family):
    """``LlavaForConditionalGeneration``."""

    model_types = ("llava",)

    def projector(self) -> nn.Module:
        return self.core.multi_modal_projector

    @property
    def has_cls(self) -> bool:
        return self.model.config.vision_feature_select_strategy == "default"

    def vision_layers(self) -> nn.ModuleList:
        return list_of_layers(self.core.vision_tower)

    def vision_taps(self, needs: frozenset[str]) -> dict[str, nn.Module]:
        if not needs & {"cls_attention", "received_attention"}:
            return {}
        layers, index = self.vision_layers(), self.model.config.vision_feature_layer
        if not isinstance(index, int):
            index = index[-1]
        # hidden_states[0] are the embeddings, so entry i is the output of layer i - 1.
        return {"features": layers[index % (len(layers) + 1) - 1].self_attn}

    def images(
        self,
        modality: str,
        arguments: Mapping[str, Any],
        features: list[Tensor],
        capture: VisionCapture,
    ) -> list[CapturedImage]:
        return [
            CapturedImage(_square(len(one)), self.signals(capture, i, i + 1))
            for i, one in enumerate(features)
        ]

    def signals(
        self, capture: VisionCapture, start: int, stop: int
    ) -> dict[str, Callable[[], Tensor]]:
        """Signals of crops ``start:stop`` of one encoder pass, per token ``[tiles, P, ...]``."""
        found: dict[str, Callable[[], Tensor]] = {}
        if capture.projector_input is not None:
            found["vision_features"] = lambda: capture.projector_input[start:stop]
            found["tile_features"] = lambda: capture.projector_output[start:stop]
        if "features" in capture.attention:
            q, k, scaling = capture.attention["features"][0]
            first = int(self.has_cls)
            found["received_attention"] = lambda: received_attention(
                q[start:stop], k[start:stop], scaling
            )[:, first:]
            if self.has_cls:
                # The CLS column goes, nothing is rescaled; heads last.
                found["cls_attention"] = lambda: cls_rows(
                    q[start:stop], k[start:stop], scaling
                )[:, :, 1:].transpose(1, 2)
        return found


def _square(n_tokens: int) -> TokenLayout:
    side = math.isqrt(n_tokens)
    if side * side != n_tokens:
        raise PruningUnsupported(f"{n_tokens} visual tokens are not a square grid")
    return grids_layout("image", 1, side, side)
