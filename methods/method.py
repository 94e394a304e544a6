"""What all methods are: options, parts, counting."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vtprune.methods import options
from vtprune.methods.cost import SelectionShape
from vtprune.methods.counts import Rounding, n_keep
from vtprune.methods.errors import MethodError
from vtprune.methods.options import option
from vtprune.methods.views import ImageTokens, Selection

RatioMode = Literal["mean", "local"]
Positions = Literal["original", "compact"]
ComputeDtype = Literal["float32", "model"]


@dataclass(frozen=True, kw_only=True)
class PruningMethod:
    """Options common to all methods, and what everything else may ask of one."""

    ratio: float = option(
        0.0, "fraction of visual tokens removed; 0 leaves the model untouched", low=0, below=1
    )
    ratio_mode: RatioMode = option(
        "mean", "mean = mean removal over LLM layers | local = the method's own final parameter"
    )
    rounding: Rounding = option(
        "floor", "of counts: floor | round_half_even | int_raw (plain truncation)"
    )
    positions: Positions = option(
        "original", "original = survivors keep their position ids | compact = renumbered"
    )
    compute_dtype: ComputeDtype = option(
        "float32", "float32 | model = selection in the model's dtype"
    )
    seed: int = option(0, "seed of the run; only stochastic methods use it")

    name: ClassVar[str] = "method"
    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    stage: ClassVar[Literal["none", "input", "projector", "vision", "layer", "compose"]] = "none"
    #: where a part acts: on the picture, between encoder layers, before or inside the LLM
    place: ClassVar[Literal["nowhere", "picture", "encoder", "tokens", "layers"]] = "nowhere"
    needs: ClassVar[tuple[str, ...]] = ()
    merges: ClassVar[bool] = False
    query_aware: ClassVar[bool] = False
    #: options that are feasible on a shallow model; the contract tests and the gallery use them
    example: ClassVar[Mapping[str, Any]] = {"ratio": 0.5}
    #: options to add where the encoder has no CLS token; empty = undefined there
    without_cls: ClassVar[Mapping[str, Any]] = {}
    #: option -> other values that a budget solver may give it, nearest first, when no ratio meets
    #: the budget
    knobs: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    #: signal -> option that does without it, for models that do not offer the signal
    instead: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        options.check(self)

    @property
    def chain(self) -> tuple[PruningMethod, ...]:
        """What this method is made of, in the order it acts: a plain method is its only part.

        Parts are plain, never compositions. There may be several that act before the language
        model (``place`` encoder or tokens; :meth:`keep` of the whole asks them in turn), and one
        inside it at most.
        """
        return (self,)

    def part(self, place: str) -> Any:
        """The first part that acts at ``place``, or None."""
        return next((one for one in self.chain if one.place == place), None)

    def keep(self, image: ImageTokens) -> Selection:
        """Packed indices (sorted) of one image's tokens that stay, rewritten features if merged.

        Every part that acts before the language model is asked in turn about what is left.
        """
        kept = everything(image)
        for one in self.chain:
            if one is self or one.place not in ("encoder", "tokens") or one.ratio == 0:
                continue
            picked = one.keep(image.after(kept))
            features = picked.features
            if features is None and kept.features is not None:
                features = kept.features[picked.indices]
            kept = Selection(kept.indices[picked.indices], features)
        return kept

    def replace(self, **changes: Any) -> PruningMethod:
        """A copy with some options changed."""
        return dataclasses.replace(self, **changes)

    def options(self) -> dict[str, Any]:
        """All options by name, in declaration order."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def count(self, n: int, ratio: float | None = None) -> int:
        """Tokens that stay of ``n`` under this method's rounding."""
        return n_keep(n, self.ratio if ratio is None else ratio, self.rounding)

    def cost(self, shape: SelectionShape) -> int:
        """Multiply-accumulates of the selection itself for one sample: its matrix products.

        Element-wise work (norms, minima, weighted sums) is left out, as in the rest of the ledger.
        """
        return 0

    def cast(self, x: Tensor) -> Tensor:
        """``x`` in the arithmetic of the selection."""
        return x.float() if self.compute_dtype == "float32" else x

    def fit(self, name: str, value: Tensor, sizes: Mapping[int, int]) -> None:
        """Refuse a signal of the wrong length, which a reshape would fold into something plausible.

        Args:
            sizes: dimension of ``value`` -> what its size has to be.
        """
        shape = list(value.shape)
        for dimension, size in sizes.items():
            if not -len(shape) <= dimension < len(shape) or shape[dimension] != size:
                raise MethodError(
                    f"{self.name}: signal '{name}' must have {size} entries in dimension "
                    f"{dimension}, got shape {shape}"
                )


def everything(image: ImageTokens) -> Selection:
    """All tokens of an image stay."""
    return Selection(torch.arange(len(image.layout), device=image.features.device))
