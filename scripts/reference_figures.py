"""Write the shipped model's unpruned figures on drawn data, which the baseline gate compares with.

    python run.py 'bench=[gqa,mme,...]' method=none paths.results=DIR     # and engine=vlmevalkit
    python scripts/reference_figures.py --results DIR

They say that an installation computes what ours did; they are results on no benchmark.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vtprune.harness.reporting.tables import gate  # noqa: E402

FIELDS = (
    "checkpoint", "data", "bench", "metric", "value", "unit", "tolerance", "decides", "engine",
    "protocol", "source", "note",
)  # fmt: skip
# Another processor rounds otherwise, and one answer of a hundred may turn.
TOLERANCE = {"%": 3.0, "points": 30.0}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    options = parser.parse_args()
    found = [
        json.loads(f.read_text(encoding="utf-8"))
        for f in options.results.glob("runs/*/*/*/result.json")
    ]
    rows = [row(result) for result in found if usable(result)]
    if not rows:
        print(f"error: no unpruned run on drawn data below {options.results}", file=sys.stderr)
        return 1
    file = gate.PUBLISHED / "embedded_baselines.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda r: (r["engine"], r["bench"])))
    print(f"{len(rows)} figures in {file.relative_to(ROOT)}")
    return 0


def usable(result: dict) -> bool:
    """Unpruned, whole, without failures, by a model of this repository."""
    asked = result["identity"]["bench"]
    whole = asked["limit"] is None and asked["indices"] is None and not result["n_failed"]
    ours = result["data"] == "mini" and "/" not in result["identity"]["model"]["checkpoint"]
    return gate.is_baseline(result) and whole and ours


def row(result: dict) -> dict[str, str]:
    data = f"mini:{result['identity']['data']['content']}"
    unit = result["unit"]
    checkpoint = f"{result['model']}@{result['identity']['model']['checkpoint']}"
    return dict(zip(FIELDS, [
        checkpoint, data, result["bench"], result["metric"],
        f"{result['score']:.2f}", unit, f"{TOLERANCE[unit]:g}", "yes", result["engine"],
        "this harness, drawn data", "results/published/README.md", "",
    ], strict=True))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
