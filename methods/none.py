"""No pruning: the baseline, run through the same code path as every method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vtprune.methods.errors import MethodError
from vtprune.methods.method import PruningMethod
from vtprune.methods.registry import register


@register("none")
@dataclass(frozen=True, kw_only=True)
class NoPruning(PruningMethod):
    """Keep every visual token; ``ratio`` must be 0."""

    title = "unpruned"
    example: ClassVar[Mapping[str, Any]] = {"ratio": 0.0}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio != 0:
            raise MethodError(f"none: removes nothing, so ratio={self.ratio} cannot be met; use 0")
