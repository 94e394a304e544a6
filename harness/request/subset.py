"""``bench.subset=10%``: a seeded, stratified part of a benchmark, one for all rows of a table.

Larger parts contain the smaller ones of the same seed, so extending one asks only what is new.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vtprune.harness.request.errors import ConfigError
from vtprune.harness.request.request import Bench

# What divides a benchmark into kinds of questions; the first of these columns that a split has.
STRATA = (
    "category", "question_type", "question_type_id", "answer_type", "capability", "subject",
    "question_types", "type",
)  # fmt: skip


def fraction(value: Any) -> float:
    """``10%``, ``"10 %"`` or 0.1 as 0.1.

    Raises:
        ConfigError: not a part in (0, 1].
    """
    text = str(value).strip()
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not 0 < number <= 1:
        raise ConfigError(f"bench.subset must be a part like 10% or 0.1, in (0, 1]: got {value!r}")
    return number


def identity(bench: Mapping[str, Any]) -> dict[str, Any]:
    """What a subset adds to a cell's identity: nothing where everything is asked."""
    asked = bench.get("subset")
    if asked is None or fraction(asked) == 1:
        return {}
    return {"subset": {"fraction": fraction(asked), "seed": bench.get("subset_seed") or 0}}


def check(bench: Mapping[str, Any]) -> None:
    """Refuse a subset that cannot be taken."""
    if bench.get("subset") is None:
        return
    fraction(bench["subset"])
    if bench.get("limit") is not None or bench.get("indices") is not None:
        raise ConfigError("give bench.subset, bench.limit or bench.indices, not two of them")


def choose(strata: Sequence[Any], part: float, seed: int) -> list[int]:
    """Places of the chosen of ``len(strata)`` units, in order; at least one.

    Within a stratum units are shuffled; the i-th of n stands at ``(i + 1/2) / n``. All are then
    taken in the order of these places, so each stratum gets its share to within one unit, and a
    larger part contains a smaller one.
    """
    members: dict[str, list[int]] = {}
    for unit, stratum in enumerate(strata):
        members.setdefault(str(stratum), []).append(unit)
    placed = []
    for units in members.values():
        units.sort(key=lambda unit: _lot(seed, unit))
        placed += [((i + 0.5) / len(units), _lot(seed, u), u) for i, u in enumerate(units)]
    count = max(1, round(part * len(strata)))
    return sorted(unit for _, _, unit in sorted(placed)[:count])


def _lot(seed: int, unit: int) -> str:
    return hashlib.sha256(f"{seed}:{unit}".encode()).hexdigest()


def rows(
    bench: Bench, columns: Mapping[str, Sequence[Any]], n: int, group: Mapping[int, Any]
) -> list[int]:
    """Rows of a split of ``n`` that ``bench.subset`` chooses; groups scored together stay whole.

    Args:
        bench: the benchmark.
        columns: the split's columns by name, at least those in :data:`STRATA` that it has.
        n: rows of the split.
        group: row -> group, for rows that are scored together.
    """
    everything = list(range(n))
    asked = bench.subset
    if asked is None or fraction(asked) == 1:
        return everything
    kind = next((columns[name] for name in STRATA if name in columns), [""] * n)
    units: dict[Any, list[int]] = {}
    for row in everything:
        units.setdefault(group.get(row, ("row", row)), []).append(row)
    firsts = [members[0] for members in units.values()]
    seed = int(bench.subset_seed or 0)
    chosen = choose([kind[first] for first in firsts], fraction(asked), seed)
    picked = list(units.values())
    return sorted(row for place in chosen for row in picked[place])
