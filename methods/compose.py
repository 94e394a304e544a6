"""Two methods in a row: one before the language model, one inside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from vtprune.methods.base import (
    LayerMethod,
    MethodError,
    PruningMethod,
    SelectionShape,
    TokenMethod,
    choice,
    in_range,
)
from vtprune.methods.registry import build, register


@register("compose")
@dataclass(frozen=True, kw_only=True)
class Compose(PruningMethod):
    """Chains a method before the language model and one inside it, such as VisPruner and FastV.

    The first keeps ``1 - r1`` of the tokens, the second removes the mean fraction ``r2`` of those
    that are left, so that together ``1 - ratio = (1 - r1)(1 - r2)``. A combination of ours, which
    several papers report under names of their own; no release defines it. Both parts follow one
    convention for positions, ``compact`` as VisPruner's release has it.

    Attributes:
        first, then: names of the two methods.
        first_ratio: r1; None = both remove alike, ``1 - sqrt(1 - ratio)``.
        first_options, then_options: options of either method.
    """

    positions: Literal["original", "compact"] = "compact"
    first: str = "vispruner"
    then: str = "fastv"
    first_ratio: float | None = None
    first_options: Mapping[str, Any] = field(default_factory=dict)
    then_options: Mapping[str, Any] = field(default_factory=dict)

    title = "Compose"
    paper = "a combination; see its parts"
    stage: ClassVar[Literal["none", "projector", "vision", "layer", "compose"]] = "compose"
    example: ClassVar[Mapping[str, Any]] = {"ratio": 0.6, "first": "l2norm"}

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self, "ratio_mode", ("mean",))
        if self.first_ratio is not None:
            in_range(self, "first_ratio", 0.0, self.ratio or 1.0)
        if not isinstance(self.token_method, TokenMethod):
            raise MethodError(f"compose: first={self.first} does not act before the language model")
        if not isinstance(self.layer_method, LayerMethod):
            raise MethodError(f"compose: then={self.then} does not act inside the language model")

    @property
    def ratios(self) -> tuple[float, float]:
        """Removed by the first, and by the second of what the first left."""
        first = self.first_ratio
        if first is None:
            first = 1 - math.sqrt(1 - self.ratio)
        return first, 1 - (1 - self.ratio) / (1 - first)

    def _part(self, name: str, ratio: float, options: Mapping[str, Any]) -> PruningMethod:
        common = {"rounding": self.rounding, "compute_dtype": self.compute_dtype}
        common |= {"positions": self.positions, "seed": self.seed, "ratio": ratio}
        try:
            return build(name, **{**common, **options})
        except MethodError as error:
            part = "first" if options is self.first_options else "then"
            raise MethodError(f"compose: {part}={name}: {error}") from error

    @property
    def token_method(self) -> PruningMethod:
        return self._part(self.first, self.ratios[0], self.first_options)

    @property
    def layer_method(self) -> PruningMethod:
        return self._part(self.then, self.ratios[1], self.then_options)

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*self.token_method.needs, *self.layer_method.needs)

    @property
    def query_aware(self) -> bool:  # type: ignore[override]
        return self.token_method.query_aware or self.layer_method.query_aware

    def count(self, n: int, ratio: float | None = None) -> int:
        """Tokens of a graph of ``n`` that the first part leaves."""
        return self.token_method.count(n, ratio)

    def max_mean_ratio(self, n_layers: int) -> float:
        """Largest mean removal over ``n_layers`` layers at this division."""
        inner = getattr(self.layer_method, "max_mean_ratio", lambda n: 1.0)(n_layers)
        return 1 - (1 - self.ratios[0]) * (1 - inner)

    def cost(self, shape: SelectionShape) -> int:
        """Both parts; the second works on what the first left."""
        return self.token_method.cost(shape) + self.layer_method.cost(shape)
