"""DivPrune: the set of tokens whose members are farthest apart stays."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtprune.methods import ops
from vtprune.methods.cost import SelectionShape
from vtprune.methods.counts import Rounding
from vtprune.methods.diverse import farthest_points
from vtprune.methods.method import Positions
from vtprune.methods.registry import register
from vtprune.methods.tokens import Newline, Scope, TokenMethod
from vtprune.methods.views import View


@register("divprune")
@dataclass(frozen=True, kw_only=True)
class DivPrune(TokenMethod):
    """Keep tokens by farthest-point sampling under the cosine distance.

    Source: "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models"
    (arXiv 2503.02175). As in the release all tokens of an image, row-end tokens included, compete
    in one graph, and counts round half to even. Deviations: distances in float32 (in bfloat16 two
    thirds of the kept tokens change); a running minimum instead of the minimum over all picks so
    far; any number of images and any prompt.
    """

    scope: Scope = "joint"
    newline: Newline = "candidate"
    positions: Positions = "compact"
    rounding: Rounding = "round_half_even"

    title = "DivPrune"
    paper = "arXiv:2503.02175"

    def select(self, view: View, k: int) -> Tensor:
        return farthest_points(1 - ops.cosine_graph(view.features), k)[0]

    def cost(self, shape: SelectionShape) -> int:
        """All pairs of cosines; the picks only take minima."""
        return sum(ops.cosine_pairs(n) for n in shape.views) * shape.width
