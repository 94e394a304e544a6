"""Tables from the store, without torch.

    python scripts/tables.py [--csv | --markdown] [--results DIR]      every finished cell
    python scripts/tables.py table=NAME status|plan|show|export        a table of conf/table
        [model=... data=... bench.subset=10%]   settings of all its cells
        [compare=paper]  the published value and the difference    [ci=true]     intervals
        [agree=true]     answers equal to the unpruned model's     [cost=flops]  how compute counts
        [results=DIR] [out=DIR]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vtprune.harness.reporting.tables import command, frame  # noqa: E402


def main() -> int:
    if any(argument.startswith("table=") for argument in sys.argv[1:]):
        return command.main(sys.argv[1:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="all columns as CSV")
    form.add_argument("--markdown", action="store_true", help="the readable columns as Markdown")
    options = parser.parse_args()
    cells = frame.read(options.results)
    if cells.empty:
        print(f"no finished cells below {options.results}/runs", file=sys.stderr)
        return 1
    if options.csv:
        print(cells.to_csv(index=False), end="")
    elif options.markdown:
        print(frame.display(cells).to_markdown(index=False, disable_numparse=True))
    else:
        print(frame.text(cells))
    if not options.csv:
        print("\n" + "\n".join(frame.notes(cells)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
