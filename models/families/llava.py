"""LLaVA-1.5: one crop per image, one token per patch, no newline."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from methods.base import TokenLayout
from models.errors import PruningUnsupported
from models.families.base import CapturedImage, Family, VisionCapture, grid_layout
from models.signals import cls_rows


class Llava(Family):
    """``LlavaForConditionalGeneration`` with a CLIP-like tower."""

    model_types = ("llava",)

    def projector(self) -> nn.Module:
        return self.core.multi_modal_projector

    def vision_layers(self) -> nn.ModuleList:
        """Encoder layers; searched for, because their path differs between library versions."""
        for name, module in self.core.vision_tower.named_modules():
            if name.split(".")[-1] in ("layers", "blocks") and isinstance(module, nn.ModuleList):
                return module
        raise PruningUnsupported("the vision tower has no list of layers")

    def vision_taps(self, needs: frozenset[str]) -> dict[str, nn.Module]:
        if "cls_attention" not in needs:
            return {}
        if self.model.config.vision_feature_select_strategy != "default":
            raise PruningUnsupported("cls_attention needs a tower with a CLS token that is dropped")
        layers, index = self.vision_layers(), self.model.config.vision_feature_layer
        if not isinstance(index, int):
            index = index[-1]
        # hidden_states[0] are the embeddings, so entry i is the output of layer i - 1.
        return {"features": layers[index % (len(layers) + 1) - 1].self_attn}

    def images(
        self, arguments: Mapping[str, Any], features: list[Tensor], capture: VisionCapture
    ) -> list[CapturedImage]:
        return [
            CapturedImage(self._layout(one.shape[0]), one, encoder_signals(capture, i, i + 1))
            for i, one in enumerate(features)
        ]

    def _layout(self, n_tokens: int) -> TokenLayout:
        side = math.isqrt(n_tokens)
        if side * side != n_tokens:
            raise PruningUnsupported(f"{n_tokens} visual tokens are not a square grid")
        return grid_layout("image", side, side)


def encoder_signals(
    capture: VisionCapture, start: int, stop: int
) -> dict[str, Callable[[], Tensor]]:
    """Signals of the crops ``start:stop`` of one encoder pass, per token ``[tiles, P, ...]``."""
    signals: dict[str, Callable[[], Tensor]] = {}
    if capture.projector_input is not None:
        signals["vision_features"] = lambda: capture.projector_input[start:stop]
    if capture.projector_output is not None:
        signals["tile_features"] = lambda: capture.projector_output[start:stop]
    if "features" in capture.attention:
        signals["cls_attention"] = lambda: _cls_attention(capture, start, stop)
    return signals


def _cls_attention(capture: VisionCapture, start: int, stop: int) -> Tensor:
    """``[tiles, P, heads]``; the CLS column goes, nothing is rescaled."""
    q, k, scaling = capture.attention["features"]
    return cls_rows(q[start:stop], k[start:stop], scaling)[:, :, 1:].transpose(1, 2)
