"""Tables from the store, without torch.

    python scripts/tables.py [--csv | --markdown] [--results DIR]      every finished cell
    python scripts/tables.py table=NAME|FILE status|plan|plan all|show|export      one table
        [model=... data=... bench.subset=10%]   settings of all its cells
        [add='my_pkg.my_file:MyPruner(power=0.5, label=Ours)']   rows of your own, several by commas
        [controls=true]  random, uniform, pooling, a smaller picture and none beside its methods
        [compare=paper]  the published value and the difference    [ci=true]     intervals
        [agree=true]     answers equal to the unpruned model's     [cost=flops]  how compute counts
        [scorer=0.7.3]   scores of this version of the engine, see task=score; else the newest
        [results=DIR] [out=DIR]
"""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from vtprune import places
from vtprune.harness.reporting.tables import (
    analysis,
    asked,
    every,
    lookup,
    render,
    retained,
    spec,
    speed,
    verdicts,
)
from vtprune.harness.reporting.tables.lookup import Found
from vtprune.harness.request.errors import ConfigError, unknown
from vtprune.harness.request.identity import canonical_json
from vtprune.harness.store.journal import write_atomic

VERBS = ("status", "plan", "show", "random", "export")
OWN = (*asked.WORDS, "results", "out", "compare", "ci", "agree", "cost", "scorer")


@dataclass(frozen=True)
class Request:
    """A parsed command line."""

    verb: str
    table: spec.Table
    results: Path
    out: Path
    options: render.Options
    changes: Mapping[str, Any]
    filled_by: str
    whole: bool = False  # a plan of every cell


def parse(arguments: Sequence[str]) -> Request:
    """Words are verbs, ``key=value`` are options of the command or settings of the table."""
    verbs = [a for a in arguments if "=" not in a]
    pairs = dict(a.split("=", 1) for a in arguments if "=" in a)
    if "table" not in pairs and verbs and verbs[0] not in VERBS:
        pairs = {"table": verbs.pop(0), **pairs}
    whole = verbs[:1] == ["plan"] and verbs[1:] == ["all"]
    if (len(verbs) > 1 and not whole) or (verbs and verbs[0] not in VERBS):
        raise ConfigError(unknown("command", " ".join(verbs), VERBS))
    if "table" not in pairs:
        raise ConfigError(f"{verbs[0]} what? table=NAME (available: {', '.join(spec.names())})")
    changes = {k: yaml.safe_load(v) for k, v in pairs.items() if k not in OWN}
    compare = pairs.get("compare", "none")
    if compare not in ("none", "paper"):
        raise ConfigError(unknown("compare", compare, ("none", "paper")))
    results = Path(pairs.get("results", places.RESULTS))
    table = replace(asked.load(pairs, changes, pairs.get("cost")), scorer=pairs.get("scorer"))
    table.cells()  # an option that does not exist is refused here
    return Request(
        verb=verbs[0] if verbs else "show",
        table=table,
        results=results,
        out=Path(pairs.get("out", results / "tables")),
        options=render.Options(
            ci=_switch(pairs, "ci"), paper=compare == "paper", agree=_switch(pairs, "agree")
        ),
        changes=changes,
        filled_by=" ".join(shlex.quote(word) for word in asked.typed(pairs)),
        whole=whole,
    )


def _switch(pairs: Mapping[str, str], name: str) -> bool:
    said = pairs.get(name, "false").lower()
    if said not in ("true", "false"):
        raise ConfigError(f"{name} must be true or false: got '{said}'")
    return said == "true"


def run(arguments: Sequence[str]) -> int:
    """Carry out a command."""
    request = parse(arguments)
    if request.verb == "status":
        print(status(request))
    elif request.verb == "plan":
        print(plan(request))
    elif request.verb == "show":
        grid = analysis.build(request.table, request.results)
        print(render.text(grid, request.options))
    elif request.verb == "random":
        print(verdicts.markdown(analysis.build(request.table, request.results)), end="")
    else:
        for file in export(request):
            print(file)
    return 0


def status(request: Request) -> str:
    """One line per row, the state of each cell, and the time that is still to be spent."""
    found = lookup.find(request.table, request.results)
    timed = speed.find(request.table, request.results, found)
    lines = [request.table.title, ""]
    width = max(len(row.key) for row in request.table.rows)
    for row in request.table.rows:
        own = [f for f in found if f.wanted.row.key == row.key]
        states = [_state([f for f in own if f.wanted.bench == b]) for b in request.table.benches]
        states += [f"timing: {one.status}" for one in timed if one.wanted.row.key == row.key]
        lines.append(f"  {row.key:<{width}}  " + "  ".join(states))
    lines += ["", _counted("cells", [cell.status for cell in unique(found)])]
    if timed:
        lines.append(_counted("timings", [one.status for one in timed]))
    lines += _reasons([*found, *timed]) + retained.reasons(request.table, found)
    return "\n".join([*lines, *_left(found, timed)])


def _counted(what: str, statuses: Sequence[str]) -> str:
    counts = sorted(Counter(statuses).items())
    return f"{what}: " + ", ".join(f"{n} {name}" for name, n in counts)


def _left(found: Sequence[Found], timed: Sequence[speed.Timed]) -> list[str]:
    left = speed.todo(timed)
    told = [f"{len(left)} timings to make"] if left else []
    return told if left and not todo(found) else [estimate(found), *told]


def _state(cells: list[Found]) -> str:
    counts = Counter(cell.status for cell in cells)
    parts = [name if n == len(cells) else f"{n} {name}" for name, n in sorted(counts.items())]
    partial = [c for c in cells if c.status in (lookup.RUNNING, lookup.FAILED) and c.answered]
    answered = f" ({partial[0].answered} answered)" if partial else ""
    return f"{cells[0].wanted.bench}: {'/'.join(parts)}{answered}"


def _reasons(found: Sequence[Found | speed.Timed]) -> list[str]:
    """Why something failed or never can be, and where it runs; that a cell is missing says all."""
    told = [c for c in found if c.reason and c.status != lookup.MISSING]
    return list(dict.fromkeys(f"{c.status}: {c.wanted.row.key}: {c.reason}" for c in told))


def unique(found: Sequence[Found]) -> list[Found]:
    """Cells without those that the table names twice."""
    seen: dict[str, Found] = {}
    for cell in found:
        seen.setdefault(canonical_json(cell.wanted.asked), cell)
    return list(seen.values())


def todo(found: Sequence[Found]) -> list[Found]:
    """Cells that a run would still compute."""
    return [f for f in unique(found) if f.status in (lookup.MISSING, lookup.FAILED)]


def estimate(found: Sequence[Found]) -> str:
    """Time still needed, from the measured seconds per sample of the finished cells."""
    missing, per = todo(found), lookup.seconds(found)
    if not missing:
        return "nothing to run"
    if not per:
        return f"{len(missing)} cells to run; no cell is finished yet, so no estimate of the time"
    total = sum(per.get(f.wanted.bench, per[""]) * _size(f, found) for f in missing)
    hours, minutes = divmod(round(total / 60), 60)
    shown = f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else "a minute"
    return f"{len(missing)} cells to run, about {shown} one after another"


def _size(cell: Found, found: Sequence[Found]) -> int:
    """Samples of a cell: those of a finished one of the benchmark, else what conf/bench says."""
    for other in found:
        if other.result and other.wanted.bench == cell.wanted.bench:
            return int(other.result["n_samples"])
    bench, data = cell.wanted.config["bench"], cell.wanted.config["data"]
    known = [int(other.result["n_samples"]) for other in found if other.result]
    if data["source"] == "mini" and known:  # conf/bench counts the rows of the hub's data
        return sum(known) // len(known)
    return int(bench.get("limit") or bench["samples"])


def plan(request: Request) -> str:
    """The multirun lines that fill the table; with ``plan all`` each missing one as a command."""
    found = lookup.find(request.table, request.results)
    timed = speed.find(request.table, request.results, found)
    missing, untimed = todo(found), speed.todo(timed)
    if not missing and not untimed:
        return "nothing to run: every cell that can exist is there"
    extra = "".join(f" {shlex.quote(f'{k}={spec.text(v)}')}" for k, v in request.changes.items())
    where = ""
    if request.results.resolve() != places.RESULTS.resolve():
        where = f" paths.results={shlex.quote(str(request.results))}"
    whole, lines = f"{places.command()} -m {request.filled_by}", []
    if missing:
        lines += [f"# {estimate(found)}; finished cells are skipped", f"{whole}{extra}{where}", ""]
    if untimed:
        lines.append(f"# {len(untimed)} timings, on a machine that does nothing else meanwhile")
        lines += [f"{whole} task=time{extra}{where}", ""]
    if not request.whole:
        return "\n".join([*lines, "# `plan all` prints every one as a command"])
    lines.append("# or one by one")
    for one in [*missing, *untimed]:
        arguments = " ".join(shlex.quote(a) for a in one.wanted.arguments)
        lines.append(f"{places.command()} {arguments}{where}")
    return "\n".join(lines)


def export(request: Request) -> list[Path]:
    """Write all forms of the table and its foot file; returns the files."""
    grid = analysis.build(request.table, request.results)
    options, name = request.options, request.table.name
    contents = {
        f"{name}.csv": render.csv_text(grid),
        f"{name}.md": render.markdown(grid, options),
        f"{name}.tex": render.latex(grid, options),
        f"{name}.html": render.html_page(grid, options),
        f"{name}.provenance.csv": render.provenance(grid),
    }
    request.out.mkdir(parents=True, exist_ok=True)
    files = []
    for file, content in contents.items():
        write_atomic(request.out / file, content)
        files.append(request.out / file)
    return files


def _of_one_table(arguments: Sequence[str]) -> bool:
    """False for the list of every cell, which takes --csv, --results DIR and results=DIR."""
    if any(argument.startswith("table=") for argument in arguments):
        return True
    return bool(arguments) and not arguments[0].startswith(("-", "results="))


def main(arguments: Sequence[str]) -> int:
    """The command with errors in one line; without a table, every finished cell."""
    if {"-h", "--help"} & set(arguments):
        return every.show(["--help"], __doc__)
    if not _of_one_table(arguments):
        return every.show(arguments, __doc__)
    try:
        return run(arguments)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
