"""PyramidDrop: fewer and fewer visual tokens from stage to stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vtprune.methods.base import (
    LayerMethod,
    LayerSignals,
    MethodError,
    SelectionShape,
    choice,
    in_range,
    n_keep,
)
from vtprune.methods.registry import register

#: mean tokens of the published schedule, and what its last stage keeps
PUBLISHED_MEAN, PUBLISHED_LAST = 270, 0.125


@register("pyramiddrop")
@dataclass(frozen=True, kw_only=True)
class PyramidDrop(LayerMethod):
    """At a few layers keep a falling fraction of the original tokens, by the last prompt token.

    Source: "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual
    Redundancy Reduction" (arXiv 2410.17247). After a stage the *next* layer's projections rank the
    tokens by the attention of the last prompt token, mean over heads; positions are renumbered,
    and counts are truncated, as released.

    ``ratio_mode=local``: the last stage keeps ``1 - ratio``, stages in between the powers of one
    factor; the published schedule is ``ratio=0.875``. ``ratio_mode=mean``: that factor is solved
    for the mean over layers; where 0.4 of the tokens or less are to be processed on average, the
    stages first move towards the input (our convention; the default stages process 0.25 at least).

    ``nominal=270`` is the schedule of the released evaluations (0.5, 0.25, 0.125 of 576 tokens:
    270 on average). Lower labels in the literature are settings of others, and disagree.

    Attributes:
        nominal: None, or 270.
        stages: relative depths at which tokens are dropped.
        row: whose attention ranks: the layer after the drop (``next``, signal ``next_row [H, V]``,
            as released) or the layer before it (``last``).
        redecide: choose again at every decoding step instead of once during prefill.
    """

    positions: Literal["original", "compact"] = "compact"
    rounding: Literal["floor", "round_half_even", "int_raw"] = "int_raw"
    nominal: int | None = None
    stages: tuple[float, ...] = (0.25, 0.5, 0.75)
    row: Literal["next", "last"] = "next"
    redecide: bool = False

    title = "PyramidDrop"
    paper = "arXiv:2410.17247"
    query_aware = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        super().__post_init__()
        choice(self, "row", ("next", "last"))
        self._check_nominal([PUBLISHED_MEAN])
        in_range(self, "ratio", 0.0, 1.0, high_open=True)
        rising = all(a < b for a, b in zip((0.0, *self.stages), (*self.stages, 1.0), strict=True))
        if not self.stages or not rising:
            raise MethodError(f"pyramiddrop: stages={self.stages} must rise between 0 and 1")

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return (f"{self.row}_row",)

    def max_mean_ratio(self, n_layers: int) -> float:
        """Largest mean removal over ``n_layers`` layers: nothing is left after the first."""
        return 1 - 1 / n_layers

    def boundaries(self, n_layers: int) -> list[int]:
        """Layers at whose input tokens are dropped."""
        layers = [max(s, round(d * n_layers)) for s, d in enumerate(self.stages, start=1)]
        left = 1 - self.ratio
        if self.ratio_mode == "mean" and self.nominal is None and left <= 0.4:
            layers = [max(s, round(1.6 * left * b)) for s, b in enumerate(layers, start=1)]
        if len(set(layers)) < len(layers) or layers[-1] >= n_layers:
            raise MethodError(f"pyramiddrop: {len(layers)} stages do not fit {n_layers} layers")
        return layers

    def factor(self, layers: list[int], n_layers: int) -> float:
        """Fraction kept from one stage to the next."""
        if self.nominal is not None:
            return PUBLISHED_LAST ** (1 / len(layers))
        if self.ratio_mode == "local":
            return (1 - self.ratio) ** (1 / len(layers))
        lengths = [b - a for a, b in zip((0, *layers), (*layers, n_layers), strict=True)]
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            mean = sum(n * middle**s for s, n in enumerate(lengths)) / n_layers
            low, high = (middle, high) if mean < 1 - self.ratio else (low, middle)
        return high

    def schedule(self, n_layers: int, n_visual: int) -> tuple[int, ...]:
        layers = self.boundaries(n_layers)
        free = self.ratio_mode == "mean" and self.nominal is None
        if free and 1 - self.ratio < layers[0] / n_layers:
            raise MethodError(
                f"pyramiddrop: a mean removal of {self.ratio:g} is impossible, the first "
                f"{layers[0]} of {n_layers} layers see all tokens; at most "
                f"{1 - layers[0] / n_layers:.3f}"
            )
        kept, plan = self.factor(layers, n_layers), []
        for layer in range(n_layers):
            stage = sum(layer >= b for b in layers)
            plan.append(n_keep(n_visual, 1 - kept**stage, self.rounding) if stage else n_visual)
        return tuple(plan)

    def score(self, signals: LayerSignals) -> Tensor:
        return self._cast(signals.signal(f"{self.row}_row")).mean(dim=0)

    def cost(self, shape: SelectionShape) -> int:
        """One query row per stage; the layer to come is projected once more to read its row."""
        drops = [a > b for a, b in zip(shape.visual, shape.visual[1:], strict=False)]
        rows = [n for n, drop in zip(shape.sequence, drops, strict=False) if drop]
        again = shape.attention_width + 2 * shape.key_value if self.row == "next" else 0
        return sum(rows) * (shape.attention_width + again * shape.width)
