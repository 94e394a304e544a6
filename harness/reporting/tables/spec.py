"""A table as a config: its rows, its columns, and the cells they name.

    settings    options common to all cells (groups and dotted options)
    columns     benchmarks
    rows        each one row, or a block: a list under ratio or sweep gives one row per value;
                a list under seed gives one row of several runs, shown with their spread
    budgets     ratio -> budget that is asked for instead; the ratio then only names the row
    extras, best, conventions, notes   what else is shown, what the bold numbers are the best of
    cost        the convention in which the column macs is counted
    retained    benchmarks that the column retained is a mean over, if not all
    published   the paper's own numbers in results/published, for compare=paper
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtprune.harness.cost.conventions import CONVENTIONS
from vtprune.harness.request import compose as wanted
from vtprune.harness.request import known, words
from vtprune.harness.request.errors import ConfigError, unknown

ROW_KEYS = {
    "name", "label", "method", "ratio", "seed", "options", "sweep", "published", "ours",
}  # fmt: skip
KEYS = (
    "title", "settings", "columns", "rows", "budgets", "extras", "best", "cost", "notes",
    "published", "conventions", "retained",
)  # fmt: skip
BEST_OF = ("ratio", "block")
PAPER = "paper_gprune"  # how the G-Prune paper counts compute
RETAINED = "retained"  # a column of every table
EXTRAS = ("average", RETAINED, "macs", "removal", "throughput", "speedup", "agreement")


@dataclass(frozen=True)
class Row:
    """One line of the table: ``runs`` are the option sets whose mean it shows (seeds)."""

    name: str
    label: str
    method: str
    ratio: float
    runs: tuple[Mapping[str, Any], ...]
    block: str
    varied: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, Any] = field(default_factory=dict)
    ours: bool = False

    @property
    def key(self) -> str:
        """Name of the row, unique in its table."""
        varied = [f"{k.rpartition('.')[2]}={v}" for k, v in self.varied.items()]
        return " ".join([self.name, f"{self.ratio:g}", *varied])

    @property
    def is_baseline(self) -> bool:
        return self.method == "none"


@dataclass(frozen=True)
class Wanted:
    """One cell of the table, before it is known whether it exists."""

    row: Row
    bench: str
    overrides: Mapping[str, Any]
    config: Mapping[str, Any] = field(compare=False)
    asked: Mapping[str, Any] = field(compare=False)

    @property
    def arguments(self) -> list[str]:
        """The cell as command-line arguments, shell quoting left to the caller."""
        return arguments(self.overrides)


@dataclass(frozen=True)
class Table:
    """A loaded table."""

    name: str
    title: str
    rows: tuple[Row, ...]
    benches: tuple[str, ...]
    settings: Mapping[str, Any]
    extras: tuple[str, ...] = ()
    best: str = "ratio"
    notes: tuple[str, ...] = ()
    published: Mapping[str, Any] = field(default_factory=dict)
    conventions: Mapping[str, Any] = field(default_factory=dict)
    cost: str = PAPER
    scorer: str | None = None  # version of the engine whose scores are shown; None: the newest
    retained: tuple[str, ...] = ()

    def cells(self) -> list[Wanted]:
        """Every cell, row by row."""
        return [
            _wanted(self.settings, row, run, bench)
            for row, bench in itertools.product(self.rows, self.benches)
            for run in row.runs
        ]


def names() -> list[str]:
    """All tables below conf/table."""
    return known.choices("table")


def load(
    name: str, changes: Mapping[str, Any] | None = None, cost: str | None = None
) -> Table:  # fmt: skip
    """The table ``conf/table/<name>.yaml``; ``changes`` are settings that win over its own.

    Args:
        name: of a table, or the path of a file that holds one.
        cost: convention in which compute is counted, instead of the table's.

    Raises:
        ConfigError: no such table, or one that says something nobody reads.
    """
    name, choice = _found(name)
    content = known.entries("table", choice) or {}
    _check(name, content := {**content, **({"cost": cost} if cost else {})})
    settings = {"data": "hub", **content.get("settings", {})}
    settings |= _settings_of(changes or {})
    budgets = {float(k): v for k, v in (content.get("budgets") or {}).items()}
    return Table(
        name=name,
        title=content["title"],
        rows=tuple(r for entry in content["rows"] for r in _rows(name, entry, budgets)),
        benches=tuple(content["columns"]),
        settings=settings,
        extras=_checked_extras(name, content.get("extras", ())),
        best=content.get("best", "ratio"),
        notes=tuple(content.get("notes", ())),
        published=content.get("published") or {},
        conventions=content.get("conventions") or {},
        cost=content.get("cost", PAPER),
        retained=_checked_retained(name, content),
    )


def _found(name: str) -> tuple[str, str]:
    """What a table is called, and how conf/ names its file."""
    if name in names():
        return name, name
    path = Path(name).expanduser()
    if path.suffix not in (".yaml", ".yml") and len(path.parts) == 1:
        raise ConfigError(unknown("table", name, names()))
    if not path.is_file():
        raise ConfigError(f"table={name}: there is no such file")
    return path.stem, str(path.resolve())


def _check(table: str, content: Mapping[str, Any]) -> None:
    for key in content:
        if key not in KEYS:
            raise ConfigError(f"conf/table/{table}: " + unknown("entry", key, KEYS))
    for name, allowed in (("best", BEST_OF), ("cost", tuple(CONVENTIONS))):
        if name in content and content[name] not in allowed:
            raise ConfigError(f"conf/table/{table}: " + unknown(name, str(content[name]), allowed))


def _settings_of(changes: Mapping[str, Any]) -> dict[str, Any]:
    fixed = {"method", "bench", "ratio", "seed"}
    for key in changes:
        if key in fixed:
            raise ConfigError(f"{key} is a row or column of the table, it cannot be set from here")
    return dict(changes)


def _checked_extras(table: str, extras: Any) -> tuple[str, ...]:
    for extra in extras:
        if extra not in EXTRAS:
            raise ConfigError(f"conf/table/{table}: " + unknown("extra column", extra, EXTRAS))
    if RETAINED in extras:
        return tuple(extras)
    place = extras.index("average") + 1 if "average" in extras else 0
    return (*extras[:place], RETAINED, *extras[place:])


def _checked_retained(table: str, content: Mapping[str, Any]) -> tuple[str, ...]:
    wanted = content.get("retained") or ()
    for bench in wanted:
        if bench not in content["columns"]:
            raise ConfigError(
                f"conf/table/{table}: retained: " + unknown("column", bench, content["columns"])
            )
    return tuple(wanted)


def _rows(
    table: str, entry: Mapping[str, Any], budgets: Mapping[float, Mapping[str, Any]]
) -> list[Row]:  # fmt: skip
    for key in entry:
        if key not in ROW_KEYS:
            raise ConfigError(f"conf/table/{table}: " + unknown("key of a row", key, ROW_KEYS))
    ratios = _listed(entry.get("ratio", 0.0))
    sweep = entry.get("sweep") or {}
    seeds = _listed(entry.get("seed", [None]))
    made = []
    for ratio, *values in itertools.product(ratios, *(_listed(v) for v in sweep.values())):
        varied = dict(zip(sweep, values, strict=True))
        options = {**(entry.get("options") or {}), **varied}
        made.append(
            Row(
                name=entry["name"],
                label=entry.get("label", entry["name"]),
                method=entry["method"],
                ratio=float(ratio),
                runs=tuple(
                    _run(entry["method"], budgets.get(float(ratio)) or {"ratio": ratio},
                         options, seed)
                    for seed in seeds
                ),
                block=entry["name"],
                varied=varied,
                published=entry.get("published") or {},
                ours=bool(entry.get("ours", words.is_target(entry["method"]))),
            )
        )
    return made


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _run(
    method: str, removed: Mapping[str, Any], options: Mapping[str, Any], seed: int | None
) -> dict[str, Any]:  # fmt: skip
    if method == "none":
        return {"method": "none"}
    run = {"method": method, **removed, **options}
    return run if seed is None else {**run, "seed": seed}


def overrides(
    settings: Mapping[str, Any], row: Row, run: Mapping[str, Any]
) -> dict[str, Any]:  # fmt: skip
    """A run of a row as groups and options; settings of methods only where the method has them."""
    common = {k: v for k, v in settings.items() if not k.startswith(("method.", "budget."))}
    if not row.is_baseline:
        own = wanted.options_of(row.method)
        common |= {
            k: v
            for k, v in settings.items()
            if k.startswith("budget.")
            or (k.startswith("method.") and k.removeprefix("method.") in own)
        }
    return {**common, **run}


def arguments(chosen: Mapping[str, Any]) -> list[str]:
    """Groups and options as words of a command line, shell quoting left to the caller."""
    return [f"{key}={text(value)}" for key, value in chosen.items()]


def _wanted(
    settings: Mapping[str, Any], row: Row, run: Mapping[str, Any], bench: str
) -> Wanted:  # fmt: skip
    chosen = {**overrides(settings, row, run), "bench": bench}
    config = wanted.compose(chosen)
    return Wanted(row, bench, chosen, config, wanted.asked(config))


def text(value: Any) -> str:
    """A value as Hydra reads it back from a command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list):
        return "[" + ",".join(text(v) for v in value) + "]"
    return str(value)
