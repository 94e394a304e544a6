"""Sequential Prune: FastV in small steps, layer after layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vtprune.methods.cost import SelectionShape
from vtprune.methods.registry import register
from vtprune.methods.schedules import Steps
from vtprune.methods.views import LayerSignals


@register("seqprune")
@dataclass(frozen=True, kw_only=True)
class SequentialPrune(Steps):
    """From layer ``K`` on drop ``step`` of the tokens per layer until ``R`` of them is gone.

    Scores are FastV's, measured anew at each step among the tokens still alive. Source:
    the release LeeBumSeok/Tokenpruning (no paper at hand).

    Deviations: decided once during prefill, with one cache length per layer (the release has no
    cache and decides anew for every generated token); counts are exact (the release truncates
    doubles and loses a token here and there: ``rounding=int_raw``); an ``R`` below one step is met
    in a single smaller step (the release then prunes nothing: ``strict_schedule``); steps that do
    not fit into the layers are an error.

    ``ratio_mode=mean`` finds the ``R`` that removes ``ratio`` of the tokens on average over the
    layers; ``ratio_mode=local`` takes ``R = ratio``.
    """

    title = "Sequential Prune"
    paper = "github.com/LeeBumSeok/Tokenpruning"
    query_aware = True
    example: ClassVar[Mapping[str, Any]] = {"ratio": 0.5, "K": 1, "step": 0.4}

    def score(self, signals: LayerSignals) -> Tensor:
        return signals.signal("last_row").mean(dim=0)

    def cost(self, shape: SelectionShape) -> int:
        """One query row over the keys alive in each layer before a drop."""
        return shape.drop_rows * shape.attention_width
