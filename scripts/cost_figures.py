"""Draw the cost breakdown and the predicted-against-measured speed-up of a result folder.

python scripts/cost_figures.py [results] [--out results/figures]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vtprune.harness.reporting.figures import cost  # noqa: E402
from vtprune.harness.request.errors import HarnessError  # noqa: E402


def main() -> int:
    """Draw what the folder has data for; 1 if it has none at all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="?", type=Path, default=ROOT / "results")
    parser.add_argument("--out", type=Path, help="default: <results>/figures")
    args = parser.parse_args()
    folder, drawn = args.out or args.results / "figures", []
    for draw in (cost.draw_breakdown, cost.draw_speedup):
        try:
            drawn += draw(args.results, folder)
        except HarnessError as error:
            print(f"left out: {error}", file=sys.stderr)
    for file in drawn:
        print(file)
    return 0 if drawn else 1


if __name__ == "__main__":
    sys.exit(main())
