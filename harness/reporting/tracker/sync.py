"""Mirror every finished cell to W&B that is not there yet; a second call finds nothing to do.

    python scripts/wandb_sync.py            # offline runs in the cells' folders
    python scripts/wandb_sync.py --online   # to the server of WANDB_BASE_URL, by WANDB_API_KEY

Exit status 1 if a cell could not be published; the others are published all the same.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from vtprune import places
from vtprune.harness.cell import publish as mirror
from vtprune.harness.request import arguments as given
from vtprune.harness.request import known
from vtprune.harness.request.request import Logger
from vtprune.harness.store import index


def main(arguments: Sequence[str]) -> int:
    """Publish; 1 if a cell is left."""
    default = known.entries("logger", "wandb") or {}
    parser = given.parser("sync", __doc__)
    parser.add_argument("--results", type=Path, default=places.RESULTS)
    parser.add_argument("--online", action="store_true")
    for name in ("project", "entity", "group"):
        parser.add_argument(f"--{name}", default=default[name])
    parser.add_argument("--samples", type=int, default=default["samples"], metavar="N",
                        help="rows of the table of predictions")  # fmt: skip
    parser.add_argument("--timeout", type=float, default=default["timeout_s"], metavar="SECONDS")
    options = parser.parse_args(arguments)
    own = {k: getattr(options, k) for k in ("project", "entity", "group", "samples")}
    mode = "online" if options.online else "offline"
    logger = Logger.of({**default, **own, "mode": mode, "timeout_s": options.timeout})
    return sync(options.results, logger)


def sync(results: Path, logger: Logger) -> int:
    """Publish what is missing; stops waiting for a server after the first cell it did not take."""
    cells = [Path(result["directory"]) for result in index.finished(results)]
    missing = [cell for cell in cells if not mirror.published(cell, logger)]
    failed = 0
    for number, cell in enumerate(missing):
        problem = mirror.publish(logger, cell)
        if problem:
            print(f"{cell.relative_to(results / 'runs')}: {problem}", file=sys.stderr)
            failed += 1
            if "no answer" in problem:
                failed = len(missing) - number
                break
    print(f"{len(cells)} finished cells: {len(missing) - failed} published, "
          f"{len(cells) - len(missing)} were there already, {failed} left")  # fmt: skip
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
