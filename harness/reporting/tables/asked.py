"""A table as a command asks for it: by name or file, with controls, with rows of one's own.

    table=mini_table1  table=/path/to/mine.yaml
    controls=true                                      what every method has to beat
    add=my_pkg.my_file:MyPruner                        her rows, at every ratio of the table
    add='my_pkg.my_file:MyPruner(power=0.5, label=Ours, ratio=0.9), divprune'
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from vtprune.harness.reporting.tables import controls, spec
from vtprune.harness.reporting.tables.spec import Row, Table
from vtprune.harness.request import known, words
from vtprune.harness.request.errors import ConfigError, unknown

#: words of a command line that say which table
WORDS = ("table", "add", "controls")
_ENTRY = re.compile(r"(?P<method>[\w.:]+)\s*(\((?P<options>.*)\))?", re.DOTALL)
#: options of an entry that are not the method's
_OF_ROW = ("label", "name", "ratio", "seed")


@dataclass(frozen=True)
class Addition:
    """One method to add: ``options`` are the method's own, the rest describes the row."""

    method: str
    label: str
    options: Mapping[str, Any] = field(default_factory=dict)
    ratio: Any = None
    seed: Any = None


def load(
    pairs: Mapping[str, Any], changes: Mapping[str, Any] | None = None, cost: str | None = None
) -> Table:
    """The table that the words ``table``, ``controls`` and ``add`` of a command line describe.

    Raises:
        ConfigError: there is no such table, or an entry of ``add`` cannot be read.
    """
    table = spec.load(str(pairs["table"]), changes, cost)
    if _switch(pairs.get("controls", False)):
        table = controls.extend(table)
    if pairs.get("add"):
        table = add(table, additions(str(pairs["add"])))
    return table


def typed(pairs: Mapping[str, Any]) -> list[str]:
    """The same words for a command line, quoting for the shell left to the caller."""
    return [f"{word}={pairs[word]}" for word in WORDS if word in pairs]


def _switch(value: Any) -> bool:
    said = str(value).lower()
    if said not in ("true", "false"):
        raise ConfigError(f"controls must be true or false, got {value}")
    return said == "true"


def additions(text: str) -> list[Addition]:
    """The entries of ``add=``.

    Raises:
        ConfigError: one cannot be read, or names no method.
    """
    return [_addition(entry) for entry in _split(text)]


def _addition(entry: str) -> Addition:
    match = _ENTRY.fullmatch(entry)
    if match is None:
        raise ConfigError(
            f"add: cannot read '{entry}'; write my_pkg.my_file:MyPruner, or with options "
            "my_pkg.my_file:MyPruner(power=0.5, label=Ours)"
        )
    method, given = match["method"], dict(_options(entry, match["options"] or ""))
    if not words.is_target(method) and known.entries("method", method) is None:
        raise ConfigError("add: " + unknown("method", method, known.choices("method")))
    label = given.get("label", re.split("[.:]", method)[-1])
    own = {k: v for k, v in given.items() if k not in _OF_ROW}
    return Addition(method, str(label), own, given.get("ratio"), given.get("seed"))


def _options(entry: str, text: str) -> Iterator[tuple[str, Any]]:
    for part in _split(text):
        name, sign, value = part.partition("=")
        if not sign or not name.strip().isidentifier():
            raise ConfigError(f"add: cannot read '{part}' of {entry}; options are name=value")
        yield name.strip(), yaml.safe_load(value)


def _split(text: str) -> list[str]:
    """Parts between the commas that stand in no bracket."""
    parts, depth, start = [], 0, 0
    for place, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if sign == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def add(table: Table, new: Sequence[Addition]) -> Table:
    """The table with rows of one's own at its end, one at every ratio (or budget) it has."""
    rows = [row for one in new for row in _rows(table, one)]
    taken = {row.key for row in table.rows}
    for row in rows:
        if row.key in taken:
            raise ConfigError(f"add: two rows are called '{row.key}': give one a label=...")
        taken.add(row.key)
    return dataclasses.replace(table, name=f"{table.name}_ours", rows=(*table.rows, *rows))


def _rows(table: Table, one: Addition) -> list[Row]:
    ratios = one.ratio if isinstance(one.ratio, list) else [one.ratio]
    found = controls.budgets(table)
    wanted = found if one.ratio is None else {float(r): {"ratio": r} for r in ratios}
    if not wanted:
        raise ConfigError(f"add: table {table.name} prunes nothing; give {one.label} a ratio=...")
    seeds = one.seed if isinstance(one.seed, list) else [one.seed]
    options = {f"method.{k}": v for k, v in one.options.items()}
    name = one.label.replace(" ", "_")
    return [
        Row(
            name, one.label, one.method, ratio,
            tuple(
                {"method": one.method, **removed, **options, **({} if s is None else {"seed": s})}
                for s in seeds
            ),
            block=f"own {name}", ours=True,
        )
        for ratio, removed in wanted.items()
    ]  # fmt: skip
