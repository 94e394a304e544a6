"""A table as one HTML page: `python scripts/report.py table=NAME [samples=40] [out=FILE]`.

Tables, figures and a browser of samples, in a file that opens anywhere without a server. Options:
model= data= as in the table, results=DIR.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from vtprune import places
from vtprune.harness.reporting.report import page
from vtprune.harness.reporting.tables import analysis, asked, spec
from vtprune.harness.request.arguments import wants_help
from vtprune.harness.request.errors import ConfigError, HarnessError
from vtprune.harness.store.journal import write_atomic

OWN = (*asked.WORDS, "results", "out", "samples")


def main(arguments: Sequence[str]) -> int:
    """The command with errors in one line."""
    if wants_help(list(arguments), __doc__):
        return 0
    try:
        print(run(arguments))
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def run(arguments: Sequence[str]) -> Path:
    """Write the page; returns its file."""
    if wrong := [a for a in arguments if "=" not in a]:
        raise ConfigError(f"cannot read '{wrong[0]}': expected key=value, e.g. table=mini_table1")
    pairs = {k: yaml.safe_load(v) for k, v in (a.split("=", 1) for a in arguments)}
    if "table" not in pairs:
        raise ConfigError(f"give a table: table=NAME (available: {', '.join(spec.names())})")
    results = Path(pairs.get("results", places.RESULTS))
    changes = {k: v for k, v in pairs.items() if k not in OWN}
    table = asked.load(pairs, changes)
    grid = analysis.build(table, results)
    out = Path(pairs.get("out", results / "reports" / f"{table.name}.html"))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page.build(grid, results, limit=int(pairs.get("samples", 40))))
    return out


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
