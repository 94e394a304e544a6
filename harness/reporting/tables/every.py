"""Every finished cell of a results folder, as a table, CSV or Markdown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from vtprune import places
from vtprune.harness.reporting.tables import frame
from vtprune.harness.request import arguments as given


def _as_option(argument: str) -> str:
    return f"--{argument}" if argument.startswith("results=") else argument


def show(arguments: Sequence[str], text: str | None) -> int:
    """Print them; 1 if there is none. ``text`` is the help of the command."""
    parser = given.parser("tables", text)
    parser.add_argument("--results", type=Path, default=places.RESULTS)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="all columns as CSV")
    form.add_argument("--markdown", action="store_true", help="the readable columns as Markdown")
    options = parser.parse_args([_as_option(argument) for argument in arguments])
    cells = frame.read(options.results)
    if cells.empty:
        print(f"no finished cells below {options.results}/runs", file=sys.stderr)
        return 1
    if options.csv:
        print(frame.csv_text(cells), end="")
    elif options.markdown:
        print(frame.markdown(cells))
    else:
        print(frame.text(cells))
    if not options.csv:
        print("\n" + "\n".join(frame.notes(cells)))
    return 0
