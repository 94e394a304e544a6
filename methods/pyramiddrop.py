"""PyramidDrop: fewer and fewer visual tokens from stage to stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vtprune.methods.cost import SelectionShape
from vtprune.methods.counts import Rounding
from vtprune.methods.method import Positions
from vtprune.methods.options import option
from vtprune.methods.registry import register
from vtprune.methods.schedules import FallingStages
from vtprune.methods.views import LayerSignals


@register("pyramiddrop")
@dataclass(frozen=True, kw_only=True)
class PyramidDrop(FallingStages):
    """At a few layers keep a falling fraction of the original tokens, by the last prompt token.

    Source: "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual
    Redundancy Reduction" (arXiv 2410.17247). After a stage the *next* layer's projections rank the
    tokens by the attention of the last prompt token, mean over heads (signal ``next_row [H, V]``);
    positions are renumbered, and counts are truncated, as released.

    ``ratio_mode=local``: the last stage keeps ``1 - ratio``, stages in between the powers of one
    factor; the published schedule is ``ratio=0.875``. ``ratio_mode=mean``: that factor is solved
    for the mean over layers; where 0.4 of the tokens or less are to be processed on average, the
    stages first move towards the input (our convention; the default stages process 0.25 at least).

    ``nominal=270`` is the schedule of the released evaluations (0.5, 0.25, 0.125 of 576 tokens:
    270 on average). Lower labels in the literature are settings of others, and disagree.
    """

    positions: Positions = "compact"
    rounding: Rounding = "int_raw"
    nominal: Literal[270] | None = option(None, "null | 270: the published schedule")
    row: Literal["next", "last"] = option(
        "next", "whose attention ranks: next = of the layer after the drop | last = before it"
    )

    title = "PyramidDrop"
    paper = "arXiv:2410.17247"
    query_aware = True
    published_last = 0.125

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return (f"{self.row}_row",)

    def score(self, signals: LayerSignals) -> Tensor:
        return signals.signal(f"{self.row}_row").mean(dim=0)

    def cost(self, shape: SelectionShape) -> int:
        """One query row per stage; the layer to come is projected once more to read its row."""
        again = shape.attention_width + 2 * shape.key_value if self.row == "next" else 0
        return shape.drop_rows * (shape.attention_width + again * shape.width)
