"""Which rows of a table beat random, and on which benchmarks: the first question to a method."""

from __future__ import annotations

from dataclasses import dataclass

from vtprune.harness.reporting.tables import analysis, render, stats
from vtprune.harness.reporting.tables.analysis import Grid
from vtprune.harness.reporting.tables.spec import Row


@dataclass(frozen=True)
class Verdict:
    """Benchmarks on which a row is significantly better or worse than random, and the others."""

    row: Row
    better: tuple[str, ...]
    worse: tuple[str, ...]
    open: tuple[str, ...]


def against_random(grid: Grid) -> list[Verdict]:
    """A verdict per row that has a random row at its ratio; the best of each ratio first.

    As the table's mark ``°``: paired tests, two-sided, Holm over the benchmarks of the row, 5 %.
    """
    made = []
    for row in grid.table.rows:
        values = [grid.at(row, bench) for bench in grid.table.benches]
        tested = [v for v in values if "random" in v.adjusted]
        if not tested:
            continue
        sure = [v for v in tested if v.adjusted["random"] < stats.ALPHA]
        better = tuple(v.column for v in sure if analysis.beats(v, "random"))
        worse = tuple(v.column for v in sure if v.column not in better)
        rest = tuple(v.column for v in tested if v.column not in (*better, *worse))
        made.append(Verdict(row, better, worse, rest))
    return sorted(made, key=lambda v: (v.row.ratio, len(v.worse) - len(v.better)))


def markdown(grid: Grid) -> str:
    """The verdicts as a Markdown page, one table per ratio."""
    lines = [f"# Against random: {grid.table.title}", ""]
    lines += [
        "Benchmarks on which a row is significantly better or worse than the mean of random's",
        "draws at the same ratio: paired tests over the same questions, two-sided, Holm over the",
        "benchmarks of the row, 5 %.",
    ]
    found = against_random(grid)
    for ratio in sorted({v.row.ratio for v in found}):
        lines += ["", f"## ratio {ratio:g}", "", "| | better | worse | not distinguishable |"]
        lines += ["| --- | --- | --- | --- |"]
        lines += [_line(v) for v in found if v.row.ratio == ratio]
    if not found:
        lines += ["", "No row can be compared: it takes a finished row of random at its ratio."]
    return "\n".join([*lines, ""])


def _line(verdict: Verdict) -> str:
    parts = (verdict.better, verdict.worse, verdict.open)
    told = [f"{len(p)}: {', '.join(map(render.heading, p))}" if p else "-" for p in parts]
    return f"| {render.row_label(verdict.row)} | {' | '.join(told)} |"
