"""Sequential Prune: FastV in small steps, layer after layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from vtprune.methods.base import LayerMethod, LayerSignals, MethodError, SelectionShape, in_range
from vtprune.methods.registry import register


@register("seqprune")
@dataclass(frozen=True, kw_only=True)
class SequentialPrune(LayerMethod):
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

    Attributes:
        K: first layer that is pruned; at least 1.
        step: share of the original tokens that goes per layer; the last step takes the remainder.
        strict_schedule: keep the release's rule that ``R < step`` prunes nothing.
        redecide: choose again at every decoding step instead of once during prefill.
    """

    K: int = 2
    step: float = 0.10
    strict_schedule: bool = False
    redecide: bool = False

    title = "Sequential Prune"
    paper = "github.com/LeeBumSeok/Tokenpruning"
    query_aware = True
    example = {"ratio": 0.5, "K": 1, "step": 0.4}  # noqa: RUF012
    knobs = {"step": (0.2, 0.3, 0.5), "K": (1,)}  # noqa: RUF012

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "K", 1, whole=True)
        in_range(self, "step", 0.0, 1.0, low_open=True)

    def steps(self, removed: float) -> int:
        """Number of pruned layers on the way to the fraction ``removed``."""
        if self.rounding == "int_raw":
            number = int((1 / self.step) * removed)
        else:
            number = math.floor(removed / self.step + 1e-9)
        return number if number or self.strict_schedule or removed == 0 else 1

    def mean_removal(self, removed: float, steps: int, n_layers: int) -> float:
        """Mean over layers of the fraction removed, when ``steps`` steps lead to ``removed``."""
        partial = self.step * steps * (steps - 1) / 2
        return (partial + (n_layers - self.K - steps + 1) * removed) / n_layers

    def _most_steps(self, n_layers: int) -> int:
        """Steps on the way to almost everything, as far as layers allow."""
        return max(1, min(n_layers - self.K, math.ceil(1 / self.step - 1e-9) - 1))

    def max_mean_ratio(self, n_layers: int) -> float:
        """Mean removal over ``n_layers`` layers that the schedule approaches as R tends to 1."""
        if self.K >= n_layers:
            return 0.0
        steps = self._most_steps(n_layers)
        return self.mean_removal(min(1.0, (steps + 1) * self.step), steps, n_layers)

    def _target(self, n_layers: int) -> tuple[float, int]:
        """Final fraction removed, and in how many steps, for the mean removal ``ratio``."""
        bound = self.max_mean_ratio(n_layers)
        if self.ratio > bound + 1e-12:
            # Rounded down: the bound itself is approached, not reached.
            raise MethodError(
                f"seqprune: a mean removal of {self.ratio:g} is impossible with K={self.K}, "
                f"step={self.step:g} and {n_layers} layers; at most "
                f"{math.ceil(bound * 1000 - 1e-6) / 1000 - 0.001:.3f} (a larger step reaches "
                f"more; or use ratio_mode=local)"
            )
        # Within a number of steps the mean grows with R; at R = j * step one more step is taken
        # and the mean falls a little. Of several solutions take the one with most steps.
        steps = self._most_steps(n_layers)
        while steps > 1 and self.mean_removal(self.step * steps, steps, n_layers) > self.ratio:
            steps -= 1
        partial = self.step * steps * (steps - 1) / 2
        removed = (self.ratio * n_layers - partial) / (n_layers - self.K - steps + 1)
        if self.strict_schedule and removed < self.step - 1e-12:
            least = self.mean_removal(self.step, 1, n_layers)
            raise MethodError(
                f"seqprune: with strict_schedule the smallest mean removal is {least:.3f}, "
                f"ratio={self.ratio:g} is below it"
            )
        return min(1.0, removed), steps

    def schedule(self, n_layers: int, n_visual: int) -> tuple[int, ...]:
        if self.K >= n_layers:
            raise MethodError(
                f"seqprune: K={self.K} must be below the {n_layers} layers of the model"
            )
        if self.ratio_mode == "mean":
            removed, steps = self._target(n_layers)
        else:
            removed, steps = self.ratio, self.steps(self.ratio)
        if self.K + steps > n_layers:
            raise MethodError(
                f"seqprune: {steps} steps of {self.step:g} after layer K={self.K} do not fit into "
                f"{n_layers} layers; step must be above {removed / (n_layers - self.K + 1):.3f}"
            )
        gone = [self.step * (j + 1) for j in range(steps - 1)] + [removed] * (steps > 0)
        falling = [self.count(n_visual, fraction) for fraction in gone]
        last = falling[-1] if falling else n_visual
        return (n_visual,) * self.K + (*falling, *[last] * (n_layers - self.K - steps))

    def score(self, signals: LayerSignals) -> Tensor:
        return self._cast(signals.signal("last_row")).mean(dim=0)

    def cost(self, shape: SelectionShape) -> int:
        """One query row over the keys alive in each layer before a drop."""
        drops = [a > b for a, b in zip(shape.visual, shape.visual[1:], strict=False)]
        rows = (n for n, drop in zip(shape.sequence, drops, strict=False) if drop)
        return sum(rows) * shape.attention_width
