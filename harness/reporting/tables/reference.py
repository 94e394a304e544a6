"""Write the shipped model's unpruned figures on drawn data, which the baseline gate compares with.

    python run.py 'bench=[gqa,mme,...]' method=none paths.results=DIR     # and engine=vlmevalkit
    python scripts/reference_figures.py --results DIR

They say that an installation computes what ours did; they are results on no benchmark.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtprune import places
from vtprune.harness.reporting.tables import gate
from vtprune.harness.request import arguments as given
from vtprune.harness.request.errors import HarnessError
from vtprune.harness.store import index

FIELDS = (
    "checkpoint", "data", "bench", "metric", "value", "unit", "tolerance", "decides", "engine",
    "protocol", "preset", "source", "note",
)  # fmt: skip
# Another processor rounds otherwise, and one answer of a hundred may turn.
TOLERANCE = {"%": 3.0, "points": 30.0}


def main(arguments: Sequence[str]) -> int:
    """Write the file; 1 if there is nothing to write."""
    parser = given.parser("reference", __doc__)
    parser.add_argument("--results", type=Path, default=places.RESULTS)
    parser.add_argument("--out", type=Path, default=places.PUBLISHED / "embedded_baselines.csv")
    options = parser.parse_args(arguments)
    rows = [row(result) for result in index.finished(options.results) if usable(result)]
    if not rows:
        raise HarnessError(f"no unpruned run on drawn data below {options.results}")
    file = options.out
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda r: (r["engine"], r["bench"])))
    print(f"{len(rows)} figures in {file}")
    return 0


def usable(result: dict[str, Any]) -> bool:
    """Unpruned, whole, without failures, by a model of this repository."""
    asked = result["identity"]["bench"]
    whole = asked["limit"] is None and asked["indices"] is None and not result["n_failed"]
    ours = result["data"] == "mini" and "/" not in result["identity"]["model"]["checkpoint"]
    return gate.is_baseline(result) and whole and ours


def row(result: dict[str, Any]) -> dict[str, str]:
    data = f"mini:{result['identity']['data']['content']}"
    unit = result["unit"]
    checkpoint = f"{result['model']}@{result['identity']['model']['checkpoint']}"
    return dict(zip(FIELDS, [
        checkpoint, data, result["bench"], result["metric"],
        f"{result['score']:.2f}", unit, f"{TOLERANCE[unit]:g}", "yes", result["engine"],
        "this harness, drawn data", result.get("preset", "checkpoint"),
        "results/published/README.md", "",
    ], strict=True))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
