"""Any table with the controls beside its methods: what a method has to beat to be worth its name.

    random       three seeds at least        pool          average pooling
    uniform      every so many-th token      downsample    a smaller picture
    text_only    no picture at all, once

at every ratio (or budget) of the table. Rows that the table has already stay as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vtprune.harness.reporting.tables.spec import Row, Table

SEEDS = (0, 1, 2)
LABELS = {
    "random": "Random",
    "uniform": "Uniform",
    "pool": "Average pooling",
    "downsample": "Smaller picture",
}
NOTE = (
    "controls: Random is the mean of three seeds; a smaller picture has whole grids of tokens, so "
    "more may be removed than asked"
)
NO_BUDGET = "a smaller picture is not shown: budgets other than ratio are not solved for it"


def extend(table: Table) -> Table:
    """The table with the missing controls below its baseline, under a name of its own."""
    removed = budgets(table)
    by_budget = any(key.startswith("budget.") for run in removed.values() for key in run)
    rows = [_enough_seeds(row) for row in table.rows]
    new = []
    if not any(row.method == "text_only" for row in rows):
        new.append(_row("text_only", "No picture", 1.0, {"ratio": 1.0}))
    for method, label in LABELS.items():
        if method == "downsample" and by_budget:
            continue
        there = {row.ratio for row in rows if row.method == method}
        new += [_row(method, label, r, run) for r, run in removed.items() if r not in there]
    place = max((i + 1 for i, row in enumerate(rows) if row.is_baseline), default=0)
    return dataclasses.replace(
        table,
        name=f"{table.name}_controls",
        title=f"{table.title}, with controls",
        rows=(*rows[:place], *new, *rows[place:]),
        notes=(*table.notes, NOTE, *([NO_BUDGET] if by_budget else [])),
    )


def budgets(table: Table) -> dict[float, Mapping[str, Any]]:
    """What is removed in every group of the table: ratio, or the budget it stands for."""
    found: dict[float, Mapping[str, Any]] = {}
    for row in table.rows:
        if 0 < row.ratio < 1 and row.ratio not in found:
            kept = {k: v for k, v in row.runs[0].items() if k == "ratio" or k.startswith("budget.")}
            found[row.ratio] = kept
    return dict(sorted(found.items()))


def _enough_seeds(row: Row) -> Row:
    """A row of random with three seeds, whatever the table has."""
    if row.method != "random" or len(row.runs) >= len(SEEDS):
        return row
    return dataclasses.replace(row, runs=_drawn(row.runs[0]))


def _drawn(run: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    return tuple({**run, "seed": seed} for seed in SEEDS)


def _row(method: str, label: str, ratio: float, removed: Mapping[str, Any]) -> Row:
    run = {"method": method, **removed}
    runs = _drawn(run) if method == "random" else (run,)
    return Row(method, label, method, ratio, runs, block=f"control {method}")
