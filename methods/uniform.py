"""Evenly spaced tokens stay: the control that looks at nothing."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtprune.methods import ops
from vtprune.methods.registry import register
from vtprune.methods.tokens import TokenMethod
from vtprune.methods.views import View


@register("uniform")
@dataclass(frozen=True, kw_only=True)
class Uniform(TokenMethod):
    """Keep every so many-th token of a view's raster list, without looking at it.

    A control of ours, no paper. Kept tokens lie half a step from either end.
    """

    title = "uniform"
    paper = "-"

    def select(self, view: View, k: int) -> Tensor:
        return ops.even_places(len(view), k).to(view.device)
