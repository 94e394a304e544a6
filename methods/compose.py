"""Several methods in a row: between encoder layers, before the language model, inside it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from vtprune.methods.cost import SelectionShape
from vtprune.methods.errors import MethodError
from vtprune.methods.method import Positions, PruningMethod
from vtprune.methods.options import option
from vtprune.methods.registry import build, register

#: places in the order in which a run comes by them, in words
PLACES = {
    "encoder": "between encoder layers",
    "tokens": "before the language model",
    "layers": "inside the language model",
}


@register("compose")
@dataclass(frozen=True, kw_only=True)
class Compose(PruningMethod):
    """Chains methods that act one after another, such as VisPruner and then FastV.

    Each part removes the (mean) fraction ``r`` of the tokens that the parts before it left, so that
    together ``1 - ratio`` is the product of ``1 - r``. A combination of ours, which several papers
    report under names of their own; no release defines it. All parts follow one convention for
    positions, ``compact`` as VisPruner's release has it.
    """

    ratio_mode: Literal["mean"] = option(
        "mean", "only mean: 1 - ratio = (1 - first_ratio) (1 - what the second removes of the rest)"
    )
    positions: Positions = option(
        "compact", "of all parts: original = survivors keep their ids | compact = renumbered"
    )
    first: str = option("vispruner", "any method that acts before the language model")
    then: str = option("fastv", "any method that acts inside it")
    first_ratio: float | None = option(
        None, "removed by the first; null = both remove alike, 1 - sqrt(1 - ratio)", low=0, high=1
    )
    first_options: Mapping[str, Any] = option(
        factory=dict, help="its options, e.g. '+method.first_options.anyres=unpad'"
    )
    then_options: Mapping[str, Any] = option(
        factory=dict, help="options of the second, e.g. '+method.then_options.K=3'"
    )
    parts: Any = option(
        None,
        "in place of the five above a list of any length, such as [{name: divprune, ratio: 0.5}, "
        "{name: fastv, K: 3}]; parts without a ratio share what is left to remove",
        extra=True,
    )

    title = "Compose"
    paper = "a combination; see its parts"
    stage: ClassVar = "compose"
    example: ClassVar[Mapping[str, Any]] = {"ratio": 0.6, "first": "l2norm"}

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self._two() if self.parts is None else self._listed()
        shares = self._shares([entry.get("ratio") for entry in given.values()])
        made = [self._part(label, {**entry, "ratio": share})
                for (label, entry), share in zip(given.items(), shares, strict=True)]  # fmt: skip
        if self.parts is None:
            for label, part, place in zip(given, made, ("tokens", "layers"), strict=True):
                if any((inner.place == "layers") != (place == "layers") for inner in part.chain):
                    raise MethodError(f"compose: {label} does not act {PLACES[place]}")
        object.__setattr__(self, "_chain", tuple(part for one in made for part in one.chain))
        self._check_order()

    @property
    def chain(self) -> tuple[PruningMethod, ...]:
        return self._chain  # type: ignore[attr-defined]

    def _two(self) -> dict[str, Mapping[str, Any]]:
        """Each part in words, and what is given for it, as :meth:`_listed` has them."""
        if self.first_ratio is not None and self.first_ratio > (self.ratio or 1.0):
            raise MethodError(
                f"compose: first_ratio={self.first_ratio!r} must be in [0, {self.ratio or 1:g}]: "
                "the first cannot remove more than both"
            )
        for name, options in (("first", self.first_options), ("then", self.then_options)):
            if "ratio" in options:
                raise MethodError(f"compose: {name}_options.ratio has no effect; use first_ratio")
        first = {**self.first_options, "name": self.first, "ratio": self.first_ratio}
        then = {**self.then_options, "name": self.then}
        return {f"first={self.first}": first, f"then={self.then}": then}

    def _listed(self) -> dict[str, Mapping[str, Any]]:
        given = self.parts
        if not isinstance(given, (list, tuple)) or not given or not all(
            isinstance(one, Mapping) and isinstance(one.get("name"), str) for one in given
        ):
            raise MethodError(
                f"compose: parts={given!r} must be a list like [{{name: vispruner}}, "
                "{name: fastv, K: 3}]"
            )
        defaults = Compose.__dataclass_fields__
        for key in ("first", "then", "first_ratio", "first_options", "then_options"):
            if getattr(self, key) not in (defaults[key].default, {}):
                raise MethodError(f"compose: give parts or {key}, not both")
        return {f"part {n} ({one['name']})": one for n, one in enumerate(given, start=1)}

    def _shares(self, given: Sequence[Any]) -> list[float]:
        """What each part removes of what reaches it; None shares alike what is left to remove."""
        for number, ratio in enumerate(given, start=1):
            number_given = isinstance(ratio, (int, float)) and not isinstance(ratio, bool)
            if ratio is not None and not (number_given and 0 <= ratio < 1):
                raise MethodError(f"compose: ratio={ratio!r} of part {number} is not in [0, 1)")
        kept = math.prod(1 - ratio for ratio in given if ratio is not None)
        free = sum(ratio is None for ratio in given)
        left = (1 - self.ratio) / kept
        if left > 1 + 1e-9 or (not free and left < 1 - 1e-9):
            raise MethodError(
                f"compose: the ratios of the parts remove {1 - kept:.6g} together, not ratio="
                f"{self.ratio:g}; leave one of them out"
            )
        shares = []
        for ratio in given:
            if ratio is None:
                root = math.sqrt(left) if free == 2 else left ** (1 / free)
                ratio = 1 - min(1.0, root)
                left, free = left / (1 - ratio), free - 1
            shares.append(float(ratio))
        return shares

    def _part(self, label: str, entry: Mapping[str, Any]) -> PruningMethod:
        common = {"rounding": self.rounding, "compute_dtype": self.compute_dtype}
        common |= {"positions": self.positions, "seed": self.seed}
        options = {k: v for k, v in entry.items() if k != "name"}
        try:
            part = build(entry["name"], **{**common, **options})
        except MethodError as error:
            raise MethodError(f"compose: {label}: {error}") from error
        for name_, wanted in (("positions", self.positions), ("ratio_mode", "mean"),
                              ("nominal", None)):  # fmt: skip
            found = getattr(part, name_, wanted)
            if found != wanted:
                hint = f"; use method.positions={found}" if name_ == "positions" else ""
                raise MethodError(
                    f"compose: {label}: {name_}={found} cannot be kept, all parts follow "
                    f"{name_}={wanted}{hint}"
                )
        return part

    def _check_order(self) -> None:
        order = list(PLACES)
        for before, part in zip((None, *self.chain), self.chain, strict=False):
            if part.place not in PLACES:
                raise MethodError(f"compose: {part.name} cannot be a part; run it by itself")
            if before is None:
                continue
            was, now = order.index(before.place), order.index(part.place)
            if now < was or (now == was and part.place != "tokens"):
                raise MethodError(
                    f"compose: {part.name} acts {PLACES[part.place]} and cannot follow "
                    f"{before.name}, which acts {PLACES[before.place]}"
                )
        tokens = [part for part in self.chain if part.place in ("encoder", "tokens")]
        for number, part in enumerate(tokens[1:], start=1):
            if getattr(part, "scope", None) == "per_tile":
                raise MethodError(
                    f"compose: {part.name} has no whole crops behind {tokens[number - 1].name}; "
                    "use scope=per_view"
                )
            merged = [one.name for one in tokens[:number] if one.merges]
            if merged and set(part.needs) - {"fg_mask"}:
                raise MethodError(
                    f"compose: {part.name} reads the encoder ({', '.join(part.needs)}), which says "
                    f"nothing of the tokens that {merged[0]} merged"
                )

    @property
    def redecide(self) -> bool:
        """Whether a part chooses again at every decoding step."""
        return any(getattr(part, "redecide", False) for part in self.chain)

    @property
    def merges(self) -> bool:  # type: ignore[override]
        return any(part.merges for part in self.chain)

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(name for part in self.chain for name in part.needs)

    @property
    def query_aware(self) -> bool:  # type: ignore[override]
        return any(part.query_aware for part in self.chain)

    def count(self, n: int, ratio: float | None = None) -> int:
        """Tokens of a graph of ``n`` that the first part leaves."""
        return self.chain[0].count(n, ratio)

    def max_mean_ratio(self, n_layers: int) -> float:
        """Largest mean removal over ``n_layers`` layers at this division."""
        kept = 1.0
        for part in self.chain:
            inside = part.place == "layers" and hasattr(part, "max_mean_ratio")
            kept *= 1 - (part.max_mean_ratio(n_layers) if inside else part.ratio)  # type: ignore[attr-defined]
        return 1 - kept

    def cost(self, shape: SelectionShape) -> int:
        """All parts, each on what those before it left.

        Behind a part whose ``scope`` joins all views the next one is counted as joining them too.
        """
        total, views = 0, shape.views
        for part in self.chain:
            if getattr(part, "scope", "") == "joint":
                views = (sum(views),)
            kept = tuple(part.count(n) for n in views) if part.place == "tokens" else views
            total += part.cost(dataclasses.replace(shape, views=views, kept=kept))
            views = kept
        return total
