"""How all figures look and are written: PNG, SVG and PDF, the same bytes twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

#: colour-blind safe, in the order methods appear (Okabe and Ito)
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "os^Dv<>P"
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "svg.hashsalt": "figures",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}
_NO_DATE: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}


def figure(rows: int, columns: int, width: float = 3.2, height: float = 2.6) -> tuple[Any, Any]:
    """A figure with a two-dimensional array of axes, each of this size in inches."""
    with plt.rc_context(STYLE):
        return plt.subplots(
            rows, columns, figsize=(width * columns, height * rows), squeeze=False,
            layout="constrained",
        )  # fmt: skip


def save(made: Any, stem: Path) -> list[Path]:
    """Write a figure in three forms and close it; returns the files."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    files = []
    with plt.rc_context(STYLE):
        for form, metadata in _NO_DATE.items():
            file = stem.with_name(f"{stem.name}.{form}")
            made.savefig(file, metadata=metadata)
            files.append(file)
    plt.close(made)
    return files
