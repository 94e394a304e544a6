"""The paper's own numbers for the cells of a table, from results/published."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vtprune.harness.reporting.tables.gate import PUBLISHED
from vtprune.harness.reporting.tables.spec import PAPER, Row, Table


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
                _take(found, row, column, own, printed, "value")
        if "average" in about:
            _take(found, row, "average", own, about["average"], "value")
        for column, field in about.get("extras", {}).items():
            if own and (column != "macs" or same_count(table)):
                found[row.key, column] = float(own[0][field])
    return found


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
    field: str,
) -> None:
    for line in lines:
        if line["benchmark"] == printed:
            found[row.key, column] = float(line[field])


def _is(line: Mapping[str, str], row: Row, match: Mapping[str, str]) -> bool:
    return all(_equal(line[field], _of(row, name)) for field, name in match.items())


def _of(row: Row, name: str) -> Any:
    if name in ("name", "ratio"):
        return getattr(row, name)
    return {**row.runs[0], **row.varied}.get(name)


def _equal(text: str, value: Any) -> bool:
    try:
        return abs(float(text) - float(value)) < 1e-9
    except (TypeError, ValueError):
        return text == str(value)
