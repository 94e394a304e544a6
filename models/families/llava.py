"""LLaVA-1.5: one crop per image, one token per patch, no newline."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from vtprune.methods.base import TokenLayout
from vtprune.models.errors import PruningUnsupported
from vtprune.models.families.base import (
    CapturedImage,
    Family,
    VisionCapture,
    grids_layout,
    list_of_layers,
)
from vtprune.models.signals import cls_full_width, cls_rows, received_attention


class Llava(Family):
    """``LlavaForConditionalGeneration``."""

    model_types = ("llava",)
    offers = Family.offers | {"merge_slots"}

    def projector(self) -> nn.Module:
        return self.core.multi_modal_projector

    @property
    def has_cls(self) -> bool:
        return self.model.config.vision_feature_select_strategy == "default"

    def vision_layers(self) -> nn.ModuleList:
        return list_of_layers(self.core.vision_tower)

    def project(self, x: Tensor) -> Tensor:
        """Encoder tokens ``[m, C]`` as the language model takes them, ``[m, d]``."""
        projector = self.projector()
        return projector(x.to(next(projector.parameters()).dtype))

    def feature_layer(self) -> int:
        """Number of the encoder layer whose output the projector reads."""
        index = self.model.config.vision_feature_layer
        if not isinstance(index, int):
            index = index[-1]
        # hidden_states[0] are the embeddings, so entry i is the output of layer i - 1.
        return index % (len(self.vision_layers()) + 1) - 1

    def vision_taps(self, needs: frozenset[str]) -> dict[str, nn.Module]:
        layers, taps = self.vision_layers(), {}
        if needs & {"cls_attention", "received_attention", "vision_keys"}:
            taps["features"] = layers[self.feature_layer()].self_attn
        if needs & {"last_attention", "last_keys"}:
            taps["last"] = layers[-1].self_attn
        return taps

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
            q, k, scaling = _part(capture, "features", start, stop)
            first = int(self.has_cls)
            found["received_attention"] = lambda: received_attention(q, k, scaling)[:, first:]
            found["vision_keys"] = lambda: k.mean(1)[:, first:]
            if self.has_cls:
                # The CLS column goes, nothing is rescaled; heads last.
                found["cls_attention"] = lambda: cls_rows(q, k, scaling)[:, :, 1:].transpose(1, 2)
        if capture.merge_slots is not None:
            found["merge_slots"] = lambda: capture.merge_slots[start:stop]
        if "last" in capture.attention and self.has_cls:
            last_q, last_k, _ = _part(capture, "last", start, stop)
            found["last_attention"] = lambda: cls_full_width(last_q, last_k)[:, 1:]
            found["last_keys"] = lambda: last_k.transpose(1, 2).flatten(2)[:, 1:]
        return found


def _part(
    capture: VisionCapture, tap: str, start: int, stop: int
) -> tuple[Tensor, Tensor, float]:
    q, k, scaling = capture.attention[tap][0]
    return q[start:stop], k[start:stop], scaling


def _square(n_tokens: int) -> TokenLayout:
    side = math.isqrt(n_tokens)
    if side * side != n_tokens:
        raise PruningUnsupported(f"{n_tokens} visual tokens are not a square grid")
    return grids_layout("image", 1, side, side)
