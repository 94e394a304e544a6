"""FasterVLM: the tokens the encoder's CLS token attends to stay."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtprune.methods.cost import SelectionShape
from vtprune.methods.counts import Rounding
from vtprune.methods.crops import CropMethod
from vtprune.methods.registry import register
from vtprune.methods.views import View


@register("fastervlm")
@dataclass(frozen=True, kw_only=True)
class FasterVLM(CropMethod):
    """Keep the tokens with most CLS attention in each encoder crop.

    Source: "[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM
    Inference Faster" (arXiv 2412.01818) and its release. The paper speaks of re-ranking; as in the
    release tokens stay in raster order. Counts round to nearest. No deviation in the selection.
    """

    rounding: Rounding = "round_half_even"

    title = "FasterVLM"
    paper = "arXiv:2412.01818"

    def score(self, view: View) -> Tensor:
        return self.attention(view)

    def cost(self, shape: SelectionShape) -> int:
        """Reading the encoder's attention."""
        return shape.encoder_attention(self.attention_signal)
