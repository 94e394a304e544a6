"""FasterVLM: the tokens the encoder's CLS token attends to stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vtprune.methods.base import SelectionShape, View
from vtprune.methods.crops import CropMethod
from vtprune.methods.registry import register


@register("fastervlm")
@dataclass(frozen=True, kw_only=True)
class FasterVLM(CropMethod):
    """Keep the tokens with most CLS attention in each encoder crop.

    Source: "[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM
    Inference Faster" (arXiv 2412.01818) and its release. The paper speaks of re-ranking; as in the
    release tokens stay in raster order. Counts round to nearest. No deviation in the selection.

    Attributes:
        anyres, score_source: see :class:`methods.crops.CropMethod`.
    """

    rounding: Literal["floor", "round_half_even", "int_raw"] = "round_half_even"

    title = "FasterVLM"
    paper = "arXiv:2412.01818"

    def score(self, view: View) -> Tensor:
        return self.attention(view)

    def cost(self, shape: SelectionShape) -> int:
        """Reading the encoder's attention."""
        return shape.encoder_attention(self.attention_signal)
