"""A smaller picture: the control that any encoder offers for free."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vtprune.methods.inputs import InputMethod
from vtprune.methods.registry import register


def smaller_grid(rows: int, cols: int, budget: int) -> tuple[int, int]:
    """The grid of at most ``budget`` places that is nearest to filling it in the same shape.

    Every number of rows gets as many columns as the budget allows; what counts is the share of the
    budget left empty plus the change of the side ratio, as a logarithm.
    """
    best, least = (1, 1), math.inf
    for down in range(1, min(rows, budget) + 1):
        across = min(cols, budget // down)
        bent = abs(math.log(down * cols / (across * rows)))
        loss = 1 - down * across / budget + bent
        if loss < least:
            best, least = (down, across), loss
    return best


@register("downsample")
@dataclass(frozen=True, kw_only=True)
class Downsample(InputMethod):
    """Ask the same question about a smaller picture.

    A control of ours, no paper. Encoders of native resolution get a picture of fewer pixels; those
    that cut pictures into square crops get smaller crops, with interpolated position embeddings.
    The encoder, too, has less to do. Grids have whole sides: what is asked for is the largest one
    within the budget, so more may be removed than ``ratio`` says (0.5 of 24 x 24: 16 x 16, 0.556).
    What was reached is recorded.
    """

    title = "smaller picture"
    paper = "-"

    def grid(self, rows: int, cols: int, square: bool) -> tuple[int, int]:
        budget = self.count(rows * cols)
        if square:
            return math.isqrt(budget), math.isqrt(budget)
        return smaller_grid(rows, cols, budget)
