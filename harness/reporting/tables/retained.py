"""Retained performance: what is left of the unpruned scores, the number pruning papers end on.

    retained of a row = mean over the columns of 100 x score / own unpruned score

MME and other points stand in it as any score does. Every column counts, or those that the table
names (``retained: [gqa, pope]``); without one of them, or without its unpruned run, there is no
mean. The unpruned run of a cell is the one under its very conditions: model, data, engine, batch
size, precision, versions. If the store has none, the table's own unpruned run of the same rows is
taken and the value marked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from vtprune.harness.reporting.tables import gate, lookup, samples, stats
from vtprune.harness.reporting.tables.lookup import Found
from vtprune.harness.reporting.tables.spec import Table

COLUMN = "retained"
OTHER_CONDITIONS = "r"
ABSENT = "no unpruned run with the same settings (run it with method=none)"
_ORDER = (lookup.FAILED, lookup.RUNNING, lookup.MISSING, lookup.IMPOSSIBLE)


@dataclass(frozen=True)
class Pair:
    """The runs of a row on one benchmark (its seeds), and the unpruned run of each."""

    bench: str
    pruned: tuple[Mapping[str, Any], ...]
    full: tuple[Mapping[str, Any], ...]

    @property
    def ratio(self) -> float:
        """Per cent of the unpruned score; the mean over the seeds."""
        pairs = zip(self.pruned, self.full, strict=True)
        return fmean(100 * cell["score"] / base["score"] for cell, base in pairs)


@dataclass(frozen=True)
class Retained:
    """What a row retains, or the status and the reason of its hole."""

    status: str
    pairs: tuple[Pair, ...] = ()  # empty where there is a hole
    reason: str = ""
    marks: frozenset[str] = field(default=frozenset())

    @property
    def value(self) -> float | None:
        return fmean(pair.ratio for pair in self.pairs) if self.pairs else None


class _Refused(Exception):
    """A cell has no share of an unpruned score: why, and what its place in a table then is."""

    def __init__(self, reason: str, status: str = lookup.DONE) -> None:
        super().__init__(reason)
        self.reason, self.status = reason, status


def columns(table: Table) -> tuple[str, ...]:
    """Benchmarks that the mean is over."""
    return table.retained or table.benches


def meaning(table: Table) -> str:
    """What the column is, for the foot of a table."""
    over = f"over {', '.join(table.retained)} alone" if table.retained else "over the columns"
    return f"retained %: mean {over} of score / own unpruned score"


def own_baselines(table: Table, found: Iterable[Found]) -> dict[str, Mapping[str, Any]]:
    """The unpruned results of the table itself, by benchmark."""
    made: dict[str, Mapping[str, Any]] = {}
    for cell in found:
        if cell.wanted.row.is_baseline and cell.result:
            made.setdefault(cell.wanted.bench, cell.result)
    return made


def of_row(
    own: Mapping[str, Sequence[Found]], fallback: Mapping[str, Mapping[str, Any]]
) -> Retained:  # fmt: skip
    """What a row of a table retains.

    Args:
        own: its runs on each benchmark that the mean is over.
        fallback: unpruned results for those that have none under their very conditions.
    """
    open_ = {bench: {f.status for f in cells} - {lookup.DONE} for bench, cells in own.items()}
    if any(open_.values()):
        status = next(s for s in _ORDER if any(s in there for there in open_.values()))
        named = [bench for bench, there in open_.items() if there]
        return Retained(status, reason=f"not finished: {', '.join(named)}")
    pairs, marks, refused = [], set(), {}
    for bench, cells in own.items():
        try:
            pair, odd = _pair(bench, cells, fallback.get(bench))
        except _Refused as error:
            refused.setdefault((error.status, error.reason), []).append(bench)
            continue
        pairs.append(pair)
        marks |= odd | {mark for cell in cells for mark in cell.marks}
    if refused:
        status, _ = next(iter(refused))
        told = [f"{', '.join(benches)}: {why}" for (_, why), benches in refused.items()]
        return Retained(status, reason="; ".join(told))
    return Retained(lookup.DONE, tuple(pairs), marks=frozenset(marks))


def _pair(
    bench: str, cells: Sequence[Found], fallback: Mapping[str, Any] | None
) -> tuple[Pair, set[str]]:
    pruned, full, marks = [], [], set()
    for cell in cells:
        assert cell.result is not None
        base, odd = _unpruned(cell.result, cell.unpruned, fallback)
        marks |= odd | ({"!"} if base["n_failed"] else set())
        pruned.append(cell.result)
        full.append(base)
    return Pair(bench, tuple(pruned), tuple(full)), marks


def _unpruned(
    cell: Mapping[str, Any], same: Mapping[str, Any] | None, fallback: Mapping[str, Any] | None
) -> tuple[Mapping[str, Any], set[str]]:
    """The unpruned run of a cell, and a mark if its conditions are not those of the cell.

    Raises:
        _Refused: there is none, or no share of its score can be told.
    """
    base = same or fallback
    if base is None:
        raise _Refused(ABSENT, lookup.MISSING)
    if same is None and (differs := _incomparable(cell, base)):
        raise _Refused(f"its unpruned run has {differs}", lookup.MISSING)
    if (why := _no_share(cell, base)) is not None:
        raise _Refused(why)
    return base, set() if same else {OTHER_CONDITIONS}


def _no_share(cell: Mapping[str, Any], base: Mapping[str, Any]) -> str | None:
    if not cell.get("higher_is_better", True):
        return "less is better: no share of an unpruned score"
    if cell["metric"] != base["metric"]:
        return f"its unpruned run is scored by {base['metric']}"
    return None if base["score"] > 0 else f"the unpruned score is {base['score']:g}"


def _incomparable(cell: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """What forbids to compare two runs of one request: other data or weights; versions do not."""
    one, other = cell["identity"], base["identity"]
    if one["data"] != other["data"]:
        return "other data"
    if one["model"].get("checkpoint") != other["model"].get("checkpoint"):
        return "another checkpoint"
    settings = [{k: v for k, v in i.items() if k not in ("method", "model", "versions", "data")}
                for i in (one, other)]  # fmt: skip
    return "" if settings[0] == settings[1] else "other settings"


@dataclass(frozen=True)
class Spread:
    """The interval of a retained mean, over ``n`` samples; ``reason`` says why there is none."""

    low: float | None = None
    high: float | None = None
    n: int = 0
    reason: str = ""


def interval(pairs: Sequence[Pair]) -> Spread:
    """Bootstrap of the mean ratio, paired over the samples that both sides answered.

    Images are drawn within each benchmark, benchmarks independently of each other, as they are.
    """
    made, n = [], 0
    for pair in pairs:
        if len({base["directory"] for base in pair.full}) > 1:
            return Spread(reason=f"{pair.bench}: its seeds have several unpruned runs: no interval")
        pruned = [samples.of(cell) for cell in pair.pruned]
        both = samples.paired(pruned, samples.of(pair.full[0]))
        if both is None:
            return Spread(reason=f"{pair.bench}: the samples do not add up, or none is shared: "
                                 "no interval")  # fmt: skip
        made.append((pair.bench, both[0], both[1]))
        n += both[2]
    found = stats.mean_ratio(made)
    if found is None:
        return Spread(n=n, reason="an unpruned score can be resampled to 0: no interval")
    return Spread(100 * found[0], 100 * found[1], n)


def of_run(result: Mapping[str, Any], base: Mapping[str, Any] | None) -> float | None:
    """Per cent of its unpruned score that one run retains; None if there is no such share."""
    if base is None or _no_share(result, base) is not None:
        return None
    return 100 * result["score"] / base["score"]


def summary(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for pruned runs of one row: what is retained over their benchmarks, or how to know.

    Nothing for an unpruned run, and for runs that are no one row (several methods or ratios).
    """
    if any(gate.is_baseline(result) for result in results):
        return []
    rows = {(r["model"], r["method"], r["ratio"]) for r in results}
    benches = [result["bench"] for result in results]
    if len(rows) != 1 or len(set(benches)) != len(benches):
        return []
    pairs = []
    for result in sorted(results, key=lambda r: r["bench"]):
        base = gate.baseline(result)
        if base is None or of_run(result, base) is None:
            return []
        pairs.append(Pair(result["bench"], (result,), (base,)))
    spread = interval(pairs)
    value = fmean(pair.ratio for pair in pairs)
    what = "of the unpruned score"
    if len(pairs) > 1:
        what += f"s, mean over {len(pairs)} benchmarks"
    if spread.low is None:
        return [f"retained: {value:.2f} % {what} ({spread.reason})"]
    return [f"retained: {value:.2f} % {what}, 95 % interval {spread.low:.1f} to {spread.high:.1f} "
            f"(paired over {spread.n} samples)"]  # fmt: skip


def reasons(table: Table, found: Sequence[Found]) -> list[str]:
    """Why rows have no retained mean, one line for each reason."""
    rows = [row for row in table.rows if not row.is_baseline]
    places, fallback = lookup.by_place(found), own_baselines(table, found)
    why: dict[str, list[str]] = {}
    for row in rows:
        made = of_row({bench: places[row.key, bench] for bench in columns(table)}, fallback)
        if made.value is None:
            why.setdefault(made.reason, []).append(row.key)
    return [f"no retained mean of {_rows(keys, len(rows))}: {reason}"
            for reason, keys in why.items()]  # fmt: skip


def _rows(keys: Sequence[str], all_rows: int) -> str:
    if len(keys) == all_rows:
        return "any row" if all_rows > 1 else keys[0]
    return ", ".join(keys) if len(keys) <= 3 else f"{len(keys)} rows ({keys[0]}, ...)"
