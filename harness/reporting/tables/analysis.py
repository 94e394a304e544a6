"""From found cells to a grid of values with intervals, tests and marks. Nothing is run, no torch.

A value whose runs are not all there is a hole, and an average over a hole is a hole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from vtprune.harness.reporting.tables import cost, lookup, retained, samples, speed, stats
from vtprune.harness.reporting.tables.lookup import Found
from vtprune.harness.reporting.tables.spec import Row, Table
from vtprune.harness.reporting.tables.speed import Timed
from vtprune.harness.request import benches

NOT_FROM_BEST, NOT_FROM_RANDOM, OTHER_COUNT = "≈", "°", "m"
STATUS_ORDER = (lookup.FAILED, lookup.RUNNING, lookup.MISSING, lookup.IMPOSSIBLE, lookup.DONE)


@dataclass
class Value:
    """One printed number, or the reason why there is none."""

    row: Row
    column: str
    status: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    spread: float | None = None
    runs: int = 0
    n: int = 0
    agreement: float | None = None
    marks: list[str] = field(default_factory=list)
    best: bool = False
    reason: str = ""
    against: dict[str, stats.Paired] = field(default_factory=dict)
    adjusted: dict[str, float] = field(default_factory=dict)
    cells: list[Found] = field(default_factory=list)
    timing: Timed | None = None


@dataclass
class Grid:
    """A table with its numbers: benchmark columns first, then the extra ones."""

    table: Table
    found: list[Found]
    values: dict[tuple[str, str], Value]
    timed: list[Timed] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        return [*self.table.benches, *self.table.extras]

    def at(self, row: Row, column: str) -> Value:
        return self.values[row.key, column]

    def marks(self) -> set[str]:
        """All marks that occur."""
        return {mark for value in self.values.values() for mark in value.marks}


def build(table: Table, results: Path, *, statistics: bool = True) -> Grid:
    """The grid of a table from what the store holds now."""
    found = lookup.find(table, results)
    grid = Grid(table, found, {}, speed.find(table, results, found))
    own = lookup.by_place(found)
    for row in table.rows:
        for bench in table.benches:
            grid.values[row.key, bench] = _score(row, bench, own[row.key, bench])
    if statistics:
        _intervals(grid)
        _agreements(grid)
        _tests(grid)
    for column in table.extras:
        for row in table.rows:
            grid.values[row.key, column] = _extra(grid, row, column, statistics)
    _bold(grid)
    return grid


def _score(row: Row, bench: str, found: list[Found]) -> Value:
    statuses = {cell.status for cell in found}
    status = next(s for s in STATUS_ORDER if s in statuses)
    made = Value(row, bench, status, runs=len(found), cells=found)
    made.reason = next((cell.reason for cell in found if cell.reason), "")
    results = [cell.result for cell in found if cell.result]
    if status != lookup.DONE:
        return made
    scores = [result["score"] for result in results]
    made.value, made.n = fmean(scores), min(result["n_samples"] for result in results)
    made.spread = stdev(scores) if len(scores) > 1 else None
    made.marks = sorted({mark for cell in found for mark in cell.marks}, key=_mark_order)
    return made


def _mark_order(mark: str) -> int:
    timing = [speed.OTHER_THAN_SCORES, speed.UNSETTLED]
    others = [retained.OTHER_CONDITIONS, OTHER_COUNT, NOT_FROM_RANDOM, NOT_FROM_BEST]
    return [*lookup.MARKS, *timing, *others].index(mark)


def _samples(value: Value) -> list[samples.Samples]:
    return [samples.of(cell.result) for cell in value.cells if cell.result]


def _intervals(grid: Grid) -> None:
    # Column by column: the cells of one benchmark share the draws of its images.
    for value in sorted(grid.values.values(), key=lambda v: grid.table.benches.index(v.column)):
        if value.value is None:
            continue
        statistic = samples.mean_statistic(_samples(value))
        if statistic is None:
            value.reason = "its samples do not add up to the score: no interval"
            continue
        found = stats.interval(statistic, draws=stats.draws_for(statistic))
        value.low, value.high = found.low, found.high


def _agreements(grid: Grid) -> None:
    for bench in grid.table.benches:
        base = next((grid.at(r, bench) for r in grid.table.rows if r.is_baseline), None)
        if base is None or base.value is None:
            continue
        (reference,) = _samples(base)
        answers = dict(zip(reference.ids, reference.answers, strict=True))
        for row in grid.table.rows:
            value = grid.at(row, bench)
            shares = [
                stats.agreement(s.answers, list(map(answers.get, s.ids)))
                for s in _samples(value)
                if value.value is not None
            ]
            there = [share for share in shares if share is not None]
            value.agreement = 100 * fmean(there) if there else None


def _tests(grid: Grid) -> None:
    """Each row against the best and against random of its group, Holm over the row."""
    for row in grid.table.rows:
        if row.is_baseline:
            continue
        group = group_of(grid.table, row)
        for name, rival in (("best", _best_rival), ("random", _random_rival)):
            _against(grid, row, group, name, rival)


def _against(
    grid: Grid, row: Row, group: list[Row], name: str, rival: Callable[..., Value | None]
) -> None:  # fmt: skip
    tested = []
    for bench in grid.table.benches:
        value = grid.at(row, bench)
        other = rival(grid, row, group, bench)
        if value.value is None or other is None or other.value is None:
            continue
        paired = samples.compare(_samples(value), _samples(other))
        if paired is not None:
            value.against[name] = paired
            tested.append(value)
    for value, p in zip(tested, stats.holm([v.against[name].p for v in tested]), strict=True):
        value.adjusted[name] = p
        if name == "best" and p >= stats.ALPHA and value.against[name].difference:
            value.marks.append(NOT_FROM_BEST)
        if name == "random" and (p >= stats.ALPHA or not beats(value, name)):
            value.marks.append(NOT_FROM_RANDOM)


def beats(value: Value, name: str) -> bool:
    """True if a value is on the better side of what it was tested against, by however little."""
    difference = value.against[name].difference
    return difference > 0 if higher_is_better(value.cells[0]) else difference < 0


def _best_rival(grid: Grid, row: Row, group: list[Row], bench: str) -> Value | None:
    best = best_of(grid, group, bench)
    return None if best is None or best.row.key == row.key else best


def _random_rival(grid: Grid, row: Row, group: list[Row], bench: str) -> Value | None:
    if row.method == "random":
        return None
    for other in grid.table.rows:
        if other.method == "random" and other.ratio == row.ratio:
            return grid.at(other, bench)
    return None


def group_of(table: Table, row: Row) -> list[Row]:
    """Rows among which a column's best is looked for."""
    others = [r for r in table.rows if not r.is_baseline]
    if table.best == "block":
        return [r for r in others if r.block == row.block]
    return [r for r in others if r.ratio == row.ratio]


def best_of(grid: Grid, group: Sequence[Row], column: str) -> Value | None:
    """Best value of a column in a group; None while one of the group is missing."""
    values = [grid.at(row, column) for row in group]
    values = [v for v in values if v.status != lookup.IMPOSSIBLE]
    if len(values) < 2 or any(v.value is None or math.isnan(v.value) for v in values):
        return None
    up = column not in grid.table.benches or higher_is_better(values[0].cells[0])
    return (max if up else min)(values, key=lambda v: v.value or 0.0)


def higher_is_better(cell: Found) -> bool:
    """Direction of a benchmark's score."""
    return bool(cell.wanted.config["bench"]["higher_is_better"])


def _bold(grid: Grid) -> None:
    for column in [*grid.table.benches, "average", retained.COLUMN, "agreement"]:
        if column not in grid.columns:
            continue
        for row in grid.table.rows:
            best = None if row.is_baseline else best_of(grid, group_of(grid.table, row), column)
            value = grid.at(row, column)
            value.best = best is not None and best.value == value.value


def _extra(grid: Grid, row: Row, column: str, statistics: bool) -> Value:
    if column in speed.COLUMNS:
        return _speed(grid, row, column)
    if column == retained.COLUMN:
        return _retained(grid, row, statistics)
    values = [grid.at(row, bench) for bench in grid.table.benches]
    made = Value(row, column, lookup.DONE, runs=len(values))
    holes = {v.status for v in values} - {lookup.DONE}
    if holes:
        made.status = next(s for s in STATUS_ORDER if s in holes)
        return made
    # What is odd about a score (its metric, its baseline) says nothing about tokens.
    telling = lookup.MARKS if column == "average" else "!abcdp"
    marks = {mark for v in values for mark in v.marks if mark in telling}
    if column == "macs":
        made.value, made.reason, odd = _compute(grid.table, values)
        marks |= {OTHER_COUNT} if odd else set()
    else:
        made.value = _EXTRAS[column](values)
        made.reason = "" if made.value is not None else "nothing stored to compute it from"
    made.marks = sorted(marks, key=_mark_order) if made.value is not None else []
    return made


def _retained(grid: Grid, row: Row, statistics: bool) -> Value:
    own = {bench: grid.at(row, bench).cells for bench in retained.columns(grid.table)}
    found = retained.of_row(own, retained.own_baselines(grid.table, grid.found))
    made = Value(row, retained.COLUMN, found.status, found.value, reason=found.reason)
    made.marks = sorted(found.marks, key=_mark_order)
    made.cells = [cell for cells in own.values() for cell in cells]
    if found.value is not None and statistics and not row.is_baseline:
        spread = retained.interval(found.pairs)
        made.low, made.high, made.n, made.reason = spread.low, spread.high, spread.n, spread.reason
    return made


def _speed(grid: Grid, row: Row, column: str) -> Value:
    """From the timing pass; the unpruned model's is the median over the timings."""
    made = Value(row, column, lookup.DONE)
    if row.is_baseline:
        full = speed.unpruned(grid.timed)
        if full is None:
            made.status = lookup.MISSING
        elif column == "speedup":
            made.value = 1.0
        else:
            made.value, made.low, made.high = full
        return made
    timed = next(one for one in grid.timed if one.wanted.row.key == row.key)
    made.timing, made.status, made.reason = timed, timed.status, timed.reason
    if timed.result is None:
        return made
    made.marks, made.runs = list(timed.marks), speed.rounds(timed)
    if column == "speedup":
        made.value = speed.speedup(timed)
    else:
        rate = speed.rate(timed)
        made.value, made.low, made.high = rate["median"], rate["low"], rate["high"]
    return made


def _compute(table: Table, values: list[Value]) -> tuple[float | None, str, bool]:
    """10^12 operations, why there are none, and whether another convention had to be used."""
    found = [cost.count(c.wanted.config, result, table.cost) for c, result in _results(values)]
    if any(one is None for one in found):
        return None, "its runs stored no count of compute", False
    counted = [one for one in found if one is not None]
    used = sorted({one.convention for one in counted})
    if len(used) > 1:
        return None, f"counted under {' and '.join(used)}: no mean of these", False
    reason = "" if used == [table.cost] else f"counted under {used[0]}"
    return fmean(one.tera for one in counted), reason, bool(reason)


def _average(values: list[Value]) -> float | None:
    """Over the columns in per cent, as the papers do; points of MME have another scale."""
    return _mean(v.value for v in values if _unit(v) == "%")


def _unit(value: Value) -> str:
    config = value.cells[0].wanted.config
    return benches.for_engine(dict(config["bench"]), dict(config["engine"]))["unit"]


def _results(values: Iterable[Value]) -> list[tuple[Found, Any]]:
    return [(cell, cell.result) for value in values for cell in value.cells if cell.result]


def _removal(values: list[Value]) -> float | None:
    mean = _mean(result["counters"]["removal"] for _, result in _results(values))
    return None if mean is None else 100 * mean


def _agreement(values: list[Value]) -> float | None:
    shares = [v.agreement for v in values]
    return None if None in shares else _mean(shares)


def _mean(values: Iterable[float | None]) -> float | None:
    there = [v for v in values if v is not None]
    return fmean(there) if there else None


_EXTRAS: dict[str, Callable[[list[Value]], float | None]] = {
    "average": _average,
    "removal": _removal,
    "agreement": _agreement,
}
