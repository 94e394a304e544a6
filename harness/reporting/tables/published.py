"""The paper's own numbers for the cells of a table, from results/published.

What a table says of them, under ``published``:

    file         their file; a number is in ``value``, its benchmark in ``benchmark``
    match        field of the file -> entry of a row (name, ratio, an option), or what the row says
                 itself under ``published``
    columns      benchmark of ours -> what the file calls it
    scale        benchmark -> factor, where the paper prints another unit
    average, retained    what the file calls these means
    extras       column -> field of the file
    annotations  what is known to be inconsistent
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from vtprune.harness.reporting.tables.gate import PUBLISHED
from vtprune.harness.reporting.tables.spec import PAPER, RETAINED, Row, Table


def values(table: Table, folder: Path = PUBLISHED) -> dict[tuple[str, str], float]:
    """(row key, column) -> printed value, for every cell the paper has."""
    about = table.published
    if not about:
        return {}
    lines, found = _lines(folder / about["file"]), {}
    for row in table.rows:
        own = [line for line in lines if _is(line, row, about["match"])]
        for column, printed in about["columns"].items():
            if column in table.benches:
                _take(found, row, column, own, printed, about.get("scale", {}).get(column, 1))
        if "average" in about:
            _take(found, row, "average", own, about["average"])
        if "retained" in about and not derives_retained(table):
            _take(found, row, RETAINED, own, about["retained"])
        for column, field in about.get("extras", {}).items():
            if own and (column != "macs" or same_count(table)):
                found[row.key, column] = float(own[0][field])
    return _retained(table, found) | found  # where a mean is printed, that one


def derives_retained(table: Table) -> bool:
    """True if the published retained mean is not printed, or is one over other columns."""
    about = table.published or {}
    return "retained" not in about or {*about["columns"]} != {*(table.retained or table.benches)}


def _retained(
    table: Table, found: Mapping[tuple[str, str], float]
) -> dict[tuple[str, str], float]:  # fmt: skip
    """The mean that follows from the printed columns, where all of them are printed."""
    benches = table.retained or table.benches
    base = next((row.key for row in table.rows if row.is_baseline), None)
    made = {}
    for row in table.rows:
        if all((key, bench) in found for key in (row.key, base) for bench in benches):
            shares = [found[row.key, b] / found[str(base), b] for b in benches]
            made[row.key, RETAINED] = 100 * fmean(shares)
    return made


def count_of(table: Table) -> str:
    """The convention in which the paper counts compute, as far as it can be told."""
    return str((table.published or {}).get("cost", PAPER))


def same_count(table: Table) -> bool:
    """True if the table counts compute as the paper does: only then are they compared."""
    return "macs" not in (table.published or {}).get("extras", {}) or table.cost == count_of(table)


@dataclass(frozen=True)
class Quoted:
    """A printed point of a cost-performance curve; cost in 10^12 as the paper counts it."""

    method: str
    ratio: float
    cost: float
    value: float


def curve(table: Table, bench: str, folder: Path = PUBLISHED) -> list[Quoted]:
    """Points of a benchmark whose cost and score are printed; none under another convention."""
    about = table.published or {}
    if "curve" not in about or table.cost != count_of(table):
        return []
    name = about["columns"].get(bench)
    return [
        Quoted(line["method"], float(line["ratio"]), float(line["tmacs"]), float(line["value"]))
        for line in _lines(folder / about["curve"])
        if line["benchmark"] == name
    ]


def annotations(table: Table) -> dict[tuple[str, str], str]:
    """(row key, column) -> what is known to be inconsistent about the printed value."""
    listed = (table.published or {}).get("annotations", [])
    return {(entry["row"], entry["column"]): entry["text"] for entry in listed}


@cache
def _lines(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _take(
    found: dict[tuple[str, str], float],
    row: Row,
    column: str,
    lines: list[dict[str, str]],
    printed: str,
    scale: float = 1,
) -> None:
    for line in lines:
        if line["benchmark"] == printed:
            found[row.key, column] = scale * float(line["value"])


def _is(line: Mapping[str, str], row: Row, match: Mapping[str, str]) -> bool:
    said = row.published
    return all(
        _equal(line[field], said[field] if field in said else _of(row, name))
        for field, name in match.items()
    )


def _of(row: Row, name: str) -> Any:
    if name in ("name", "ratio"):
        return getattr(row, name)
    return {**row.runs[0], **row.varied}.get(name)


def _equal(text: str, value: Any) -> bool:
    try:
        return abs(float(text) - float(value)) < 1e-9
    except (TypeError, ValueError):
        return text == str(value)
