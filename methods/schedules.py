"""How many visual tokens enter each layer: the schedules that methods share.

A schedule is a class to derive from, with the options it has; or, for curves of published recipes,
the functions :func:`survival` and :func:`fit_to_mean`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vtprune.methods.counts import LABELLED_TOKENS, Rounding, n_keep
from vtprune.methods.errors import MethodError
from vtprune.methods.layers import LayerMethod, Redeciding
from vtprune.methods.merging import recycled_counts
from vtprune.methods.options import option


def survival(deletions: Sequence[float], n_layers: int) -> list[float]:
    """Fraction of tokens entering each of ``n_layers`` layers.

    ``deletions`` are fractions per layer of a model of any depth; what is gone by a relative
    depth is kept the same, linearly between layers.
    """
    gone = [0.0, *itertools.accumulate(deletions)]
    depth = len(deletions)
    left = []
    for layer in range(n_layers):
        place = layer * depth / n_layers
        low = int(place)
        gone_here = gone[low] + (place - low) * (gone[min(low + 1, depth)] - gone[low])
        left.append(max(0.0, 1.0 - gone_here))
    return left


def fit_to_mean(
    curves: Sequence[Sequence[float]], ratio: float, *, full: int = 1, name: str = "fitprune"
) -> list[float]:
    """The survival curve between neighbours of ``curves`` whose mean removal is ``ratio``.

    The curves are completed by their two limits: nothing deleted, and everything deleted after
    the first ``full`` layers.
    """
    n_layers = len(curves[0])
    limits = [[1.0] * n_layers, [1.0] * full + [0.0] * (n_layers - full)]
    ordered = sorted([*map(list, curves), *limits], key=sum, reverse=True)
    wanted = (1 - ratio) * n_layers
    for high, low in itertools.pairwise(ordered):
        if sum(high) >= wanted >= sum(low):
            part = (sum(high) - wanted) / (sum(high) - sum(low)) if sum(high) > sum(low) else 0.0
            return [a + part * (b - a) for a, b in zip(high, low, strict=True)]
    raise MethodError(
        f"{name}: a mean removal of {ratio:g} is impossible; {full} of {n_layers} layers see all "
        f"tokens, so at most {1 - full / n_layers:.3f}"
    )


def staged(shares: Sequence[float], layers: Sequence[int], n_layers: int) -> list[float]:
    """The curve of ``shares`` kept before the first of ``layers``, after it, after the second..."""
    return [shares[sum(layer >= b for b in layers)] for layer in range(n_layers)]


def counts(curve: Sequence[float], n_visual: int, rounding: Rounding) -> tuple[int, ...]:
    """Whole tokens of a curve of fractions."""
    return tuple(n_keep(n_visual, 1 - share, rounding) for share in curve)


def fitting(name: str, layers: list[int], n_layers: int) -> list[int]:
    """``layers`` at whose input tokens are dropped, refused if the model has no room for them."""
    if len(set(layers)) < len(layers) or layers[-1] >= n_layers:
        raise MethodError(f"{name}: {len(layers)} stages do not fit {n_layers} layers")
    return layers


def below_depth(name: str, K: int, n_layers: int) -> None:
    """Refuse a first layer ``K`` to drop at that the model does not have."""
    if K >= n_layers:
        raise MethodError(f"{name}: K={K} must be below the {n_layers} layers of the model")


@dataclass(frozen=True, kw_only=True)
class DropOnce(LayerMethod):
    """Drop once, at the input of layer ``K``.

    ``ratio_mode=mean``: layers before K run in full, so ``ratio * L / (L - K)`` of the tokens is
    dropped there, and no ratio above ``1 - K / L`` exists. ``ratio_mode=local``: ``ratio`` itself
    is dropped at K.
    """

    K: int = option(2, "layers that see all tokens; ports of FastV use 3", low=1)

    knobs: ClassVar[Mapping[str, tuple[Any, ...]]] = {"K": (1,)}

    def max_mean_ratio(self, n_layers: int) -> float:
        """Largest mean removal over ``n_layers`` layers."""
        return max(0.0, 1 - self.K / n_layers)

    def schedule(self, n_layers: int, n_visual: int) -> tuple[int, ...]:
        below_depth(self.name, self.K, n_layers)
        removed = self.ratio
        if self.ratio_mode == "mean":
            bound = self.max_mean_ratio(n_layers)
            if self.ratio > bound + 1e-12:
                raise MethodError(
                    f"{self.name}: a mean removal of {self.ratio:g} is impossible with K={self.K} "
                    f"of {n_layers} layers; at most {bound:.3f} (or use ratio_mode=local)"
                )
            removed = min(1.0, self.ratio / bound)
        return (n_visual,) * self.K + (self.count(n_visual, removed),) * (n_layers - self.K)


@dataclass(frozen=True, kw_only=True)
class Steps(Redeciding):
    """From layer ``K`` on drop ``step`` of the tokens per layer until ``R`` of them is gone.

    ``ratio_mode=mean`` finds the ``R`` that removes ``ratio`` of the tokens on average over the
    layers; ``ratio_mode=local`` takes ``R = ratio``.
    """

    K: int = option(2, "first layer that is pruned", low=1)
    step: float = option(
        0.10, "share of the tokens that goes per layer; the last step takes the remainder",
        above=0, high=1,
    )  # fmt: skip
    strict_schedule: bool = option(
        False, "true = a target below one step prunes nothing, as released | false = one small step"
    )

    knobs: ClassVar[Mapping[str, tuple[Any, ...]]] = {"step": (0.2, 0.3, 0.5), "K": (1,)}

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
                f"{self.name}: a mean removal of {self.ratio:g} is impossible with K={self.K}, "
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
                f"{self.name}: with strict_schedule the smallest mean removal is {least:.3f}, "
                f"ratio={self.ratio:g} is below it"
            )
        return min(1.0, removed), steps

    def schedule(self, n_layers: int, n_visual: int) -> tuple[int, ...]:
        below_depth(self.name, self.K, n_layers)
        if self.ratio_mode == "mean":
            removed, steps = self._target(n_layers)
        else:
            removed, steps = self.ratio, self.steps(self.ratio)
        if self.K + steps > n_layers:
            raise MethodError(
                f"{self.name}: {steps} steps of {self.step:g} after layer K={self.K} do not fit "
                f"into {n_layers} layers; step must be above "
                f"{removed / (n_layers - self.K + 1):.3f}"
            )
        gone = [self.step * (j + 1) for j in range(steps - 1)] + [removed] * (steps > 0)
        falling = [self.count(n_visual, fraction) for fraction in gone]
        last = falling[-1] if falling else n_visual
        return (n_visual,) * self.K + (*falling, *[last] * (n_layers - self.K - steps))


@dataclass(frozen=True, kw_only=True)
class FallingStages(Redeciding):
    """At a few layers keep the powers of one factor of the original tokens.

    ``ratio_mode=local``: the last stage keeps ``1 - ratio``. ``ratio_mode=mean``: the factor is
    solved for the mean over layers; where 0.4 of the tokens or less are to be processed on
    average, the stages first move towards the input (our convention; three stages at quarters of
    the depth process 0.25 at least).
    """

    nominal: int | None = option(None, "null | label of published tables: counts as released")
    stages: tuple[float, ...] = option(
        (0.25, 0.5, 0.75), "relative depths at which tokens are dropped, rising between 0 and 1"
    )
    #: what the last stage of the published schedule keeps, in force when ``nominal`` is given
    published_last: ClassVar[float]

    def __post_init__(self) -> None:
        super().__post_init__()
        rising = all(a < b for a, b in zip((0.0, *self.stages), (*self.stages, 1.0), strict=True))
        if not self.stages or not rising:
            raise MethodError(f"{self.name}: stages={self.stages} must rise between 0 and 1")

    def boundaries(self, n_layers: int) -> list[int]:
        """Layers at whose input tokens are dropped."""
        layers = [max(s, round(d * n_layers)) for s, d in enumerate(self.stages, start=1)]
        left = 1 - self.ratio
        if self.ratio_mode == "mean" and self.nominal is None and left <= 0.4:
            layers = [max(s, round(1.6 * left * b)) for s, b in enumerate(layers, start=1)]
        return fitting(self.name, layers, n_layers)

    def factor(self, layers: list[int], n_layers: int) -> float:
        """Fraction kept from one stage to the next."""
        if self.nominal is not None:
            return self.published_last ** (1 / len(layers))
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
                f"{self.name}: a mean removal of {self.ratio:g} is impossible, the first "
                f"{layers[0]} of {n_layers} layers see all tokens; at most "
                f"{1 - layers[0] / n_layers:.3f}"
            )
        kept = self.factor(layers, n_layers)
        shares = [kept**stage for stage in range(len(layers) + 1)]
        return counts(staged(shares, layers, n_layers), n_visual, self.rounding)


@dataclass(frozen=True, kw_only=True)
class PresetStages(Redeciding):
    """Three stages whose counts come by the label of published tables, merged tokens included.

    ``nominal`` takes the counts of a label, which process more tokens than it says (64: 82.3 on
    average). Otherwise ``ratio_mode=mean`` blends neighbouring presets until the mean over layers
    is met, ``local`` scales the last preset to the fraction kept at the end.
    """

    nominal: int | None = option(None, "null | label of published tables: counts as released")
    layers: tuple[int, ...] = option(
        (2, 6, 15), "0-based layers after which tokens are dropped, in a model of `depth` layers"
    )
    depth: int = option(32, "depth of the model that `layers` counts in", low=1)
    recycle: float = option(0.3, "share of the deleted tokens that is merged", low=0, high=1)

    #: tokens kept after each stage, of 576, by label
    presets: ClassVar[Mapping[int, tuple[int, ...]]]
    knobs: ClassVar[Mapping[str, tuple[Any, ...]]] = {"layers": ((2, 4, 8), (1, 2, 4))}

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.layers) != len(self.presets[64]) or list(self.layers) != sorted(self.layers):
            raise MethodError(f"{self.name}: layers={self.layers} must be three rising layers")

    def boundaries(self, n_layers: int) -> list[int]:
        """Layers at whose input tokens are dropped."""
        found = [round((layer + 1) * n_layers / self.depth) for layer in self.layers]
        return fitting(self.name, [max(b, s) for s, b in enumerate(found, start=1)], n_layers)

    def max_mean_ratio(self, n_layers: int) -> float:
        """Largest mean removal over ``n_layers`` layers."""
        return 1 - self.boundaries(n_layers)[0] / n_layers

    def _totals(self, preset: Sequence[float], n_visual: int) -> list[int]:
        """Visual tokens after each stage, merged ones included."""
        alive, totals = n_visual, []
        for count in preset:
            kept = min(max(1, round(count * n_visual / LABELLED_TOKENS)), alive - 1)
            merged = recycled_counts(alive - kept, self.recycle)[1] if self.recycle else 0
            alive = min(alive, kept + merged)
            totals.append(alive)
        return totals

    def schedule(self, n_layers: int, n_visual: int) -> tuple[int, ...]:
        stages = self.boundaries(n_layers)

        def curve(preset: Sequence[float]) -> list[float]:
            shares = [n / n_visual for n in (n_visual, *self._totals(preset, n_visual))]
            return staged(shares, stages, n_layers)

        if self.nominal is not None:
            left = curve(self.presets[self.nominal])
        elif self.ratio_mode == "mean":
            presets = [curve(p) for p in self.presets.values()]
            left = fit_to_mean(presets, self.ratio, full=stages[0], name=self.name)
        else:
            scale = (1 - self.ratio) * LABELLED_TOKENS / self.presets[64][-1]
            left = curve([min(LABELLED_TOKENS, scale * n) for n in self.presets[64]])
        return counts(left, n_visual, self.rounding)
