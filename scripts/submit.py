"""Submit a sweep to SLURM and return; ask later, from any node, how it does.

    python scripts/submit.py method=gprune,fastv ratio=0.5,0.9 hydra.launcher.partition=gpu
    python scripts/submit.py experiment=gprune_table1 hydra.launcher.gpus_per_node=1
    python scripts/submit.py --status [FOLDER]       # the newest sweep, or the one in FOLDER

All options of `python run.py -m` work. Exit status of --status: 0 all done, 1 some failed, 3 not
finished.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--status", nargs="?", const="", metavar="FOLDER")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("overrides", nargs="*", help="as for run.py -m")
    options = parser.parse_args()
    if options.status is not None:
        return _status(options.status, options.results)
    from vtprune.harness import cli

    sys.argv[1:] = ["-m", "hydra/launcher=slurm_array", *options.overrides]
    return cli.main()


def _status(folder: str, results: Path) -> int:
    from vtprune.harness.request.errors import HarnessError, one_line
    from vtprune.harness.sweep import status

    try:
        return status.show(Path(folder) if folder else status.newest(results))
    except HarnessError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
