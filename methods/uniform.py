"""Evenly spaced tokens stay: the control that looks at nothing."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtprune.methods import ops
from vtprune.methods.base import TokenMethod, View
from vtprune.methods.registry import register


@register("uniform")
@dataclass(frozen=True, kw_only=True)
class Uniform(TokenMethod):
    """Keep every so many-th token of a view's raster list, without looking at it.

    A control of ours, no paper. Kept tokens lie half a step from either end.
    """

    title = "uniform"
    paper = "-"

    def select(self, view: View, k: int) -> Tensor:
        return ops.even_places(len(view), k).to(view.features.device)
