"""The W&B dashboard of the mirrored cells, as code: a workspace and a report.

    python scripts/wandb_dashboard.py                              print both as JSON, no server
    python scripts/wandb_dashboard.py --table mini_table1          with a table of conf/table
    python scripts/wandb_dashboard.py --save --entity my-team      create them on the server

Per benchmark: score over TFLOPs, bars for every ratio, parallel coordinates; and the table of all
cells. Benchmarks and ratios are those of --table, else those of the finished cells; --bench and
--ratio choose others. Needs the package wandb-workspaces.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from vtprune import places
from vtprune.harness.request import arguments as given
from vtprune.harness.request.errors import HarnessError
from vtprune.harness.store import index

_EXTRA = "pip install wandb-workspaces"


def main(arguments: Sequence[str]) -> int:
    """Print the dashboard, or create it."""
    parser = given.parser("dashboard", __doc__)
    parser.add_argument("--project", default="visual-token-pruning")
    parser.add_argument("--entity", default="me", help="user or team the project belongs to")
    parser.add_argument("--results", type=Path, default=places.RESULTS)
    parser.add_argument("--table", metavar="NAME", help="of conf/table, mirrored as it is now")
    parser.add_argument("--bench", help="comma-separated names")
    parser.add_argument("--ratio", help="comma-separated ratios")
    parser.add_argument("--save", action="store_true", help="create them on the server")
    options = parser.parse_args(arguments)
    try:
        from vtprune.harness.reporting.tracker import dashboard
    except ImportError as error:
        raise HarnessError(f"{error}; {_EXTRA}") from error
    shown = dashboard.Shown(*_shown(options))
    if options.save:
        for address in dashboard.save(options.entity, options.project, shown):
            print(address)
        return 0
    print(json.dumps(dashboard.spec(options.entity, options.project, shown), indent=1))
    return 0


def _shown(options: argparse.Namespace) -> tuple[list[str], list[float], list[str]]:
    """Benchmarks, ratios and tables of the dashboard."""
    tables = []
    if options.table:
        from vtprune.harness.reporting.tables import analysis, render, spec

        table = spec.load(options.table)
        text = render.markdown(analysis.build(table, options.results), render.Options())
        tables = [text]
        benches, ratios = list(table.benches), {r.ratio for r in table.rows}
    else:
        cells = list(index.finished(options.results))
        benches, ratios = sorted({c["bench"] for c in cells}), {float(c["ratio"]) for c in cells}
    if options.bench:
        benches = options.bench.split(",")
    if options.ratio:
        ratios = {float(ratio) for ratio in options.ratio.split(",")}
    if not benches:
        raise HarnessError(f"no finished cells below {options.results}/runs; give --bench names, "
                           "or --table NAME")  # fmt: skip
    return benches, sorted(ratio for ratio in ratios if ratio), tables


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
