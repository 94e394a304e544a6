"""All finished cells as one pandas frame, and the small table printed after a run. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from vtprune.harness.reporting.tables import gate, retained
from vtprune.harness.reporting.tables.escape import csv_field, markdown_text
from vtprune.harness.request.terminal import visible_line
from vtprune.harness.store import index

COLUMNS = (
    "model", "method", "ratio", "bench", "data", "score", "retained", "n", "failed",
    "visual_tokens", "visual_kept", "removal", "macs", "macs_pct", "samples_per_s", "unit",
    "metric", "engine", "judge", "gate", "settings", "finished", "key", "directory",
)  # fmt: skip


def row(result: dict[str, Any]) -> dict[str, Any]:
    """One result.json as one row of the frame."""
    counters = result["counters"]
    unpruned = gate.baseline(result)
    macs, full = (counters["macs"] or {}).get("total"), counters["macs_full"]
    return {
        **{k: result[k] for k in ("model", "method", "ratio", "bench", "data", "score")},
        "retained": retained.of_run(result, unpruned),
        "n": result["n_samples"],
        "failed": result["n_failed"],
        **{k: counters[k] for k in ("visual_tokens", "visual_kept", "removal")},
        "macs": macs,
        "macs_pct": 100 * macs / full if macs and full else None,
        "samples_per_s": counters["accuracy_pass"]["samples_per_s"],
        "judge": result.get("judge"),
        "gate": gate.status_of(unpruned),
        "settings": gate.settings(result),
        **{k: result[k] for k in ("unit", "metric", "engine", "finished", "key", "directory")},
    }


def read(results: Path) -> pd.DataFrame:
    """Every finished cell below ``results/runs``; set-aside and unfinished ones are left out."""
    return frame(row(result) for result in index.finished(results))


def frame(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a frame with the usual columns and order."""
    made = pd.DataFrame(list(rows), columns=list(COLUMNS))
    order = ["model", "bench", "data", "engine", "ratio", "method"]
    return made.sort_values(order, ignore_index=True)


def display(cells: pd.DataFrame) -> pd.DataFrame:
    """The columns people read, formatted.

    A failed sample puts a ``!`` behind the score, a baseline that is not confirmed a ``†``.
    """
    shown = pd.DataFrame()
    shown["model"] = cells["model"]
    shown["method"] = cells["method"]
    shown["ratio"] = cells["ratio"].map("{:g}".format)
    shown["bench"] = cells["bench"]
    shown["data"] = cells["data"]
    if (cells["engine"] != "lmms_eval").any():  # other prompts, other scorers: another number
        shown["engine"] = cells["engine"]
    if cells["settings"].nunique() > 1:  # other pictures or lengths: another number
        shown["preset"] = cells["settings"].str.split(" ").str[0]
    marks = cells["failed"].map(lambda n: "!" if n else "")
    marks += [_gate_mark(*pair) for pair in zip(cells["method"], cells["gate"], strict=True)]
    shown["score"] = cells["score"].map("{:.2f}".format) + marks
    if (cells["retained"].notna() & (cells["method"] != "none")).any():
        shown["retained"] = cells["retained"].map(lambda r: "-" if pd.isna(r) else f"{r:.1f} %")
    answered = cells["n"] - cells["failed"]
    shown["n"] = [
        f"{a}/{n}" if a != n else str(n) for a, n in zip(answered, cells["n"], strict=True)
    ]
    tokens = zip(cells["visual_tokens"], cells["visual_kept"], strict=True)
    shown["visual tokens"] = [_tokens(before, after) for before, after in tokens]
    shown["removed"] = cells["removal"].map(lambda r: "-" if pd.isna(r) else f"{100 * r:.1f} %")
    shown["MACs"] = cells["macs_pct"].map(lambda p: "-" if pd.isna(p) else f"{p:.1f} %")
    shown["samples/s"] = cells["samples_per_s"].map(lambda s: "-" if pd.isna(s) else f"{s:.1f}")
    return shown


def _gate_mark(method: str, status: str) -> str:
    return "" if method == "none" else gate.mark(status)


def _tokens(before: float, after: float) -> str:
    return "-" if pd.isna(before) else f"{before:.0f} -> {after:.1f}"


def text(cells: pd.DataFrame) -> str:
    """The readable table."""
    return _each(display(cells), visible_line).to_string(index=False)


def csv_text(cells: pd.DataFrame) -> str:
    """All columns as CSV."""
    return _each(cells, csv_field).to_csv(index=False)


def markdown(cells: pd.DataFrame) -> str:
    """The readable columns as Markdown."""
    shown = _each(display(cells), lambda text: markdown_text(visible_line(text)))
    return shown.to_markdown(index=False, disable_numparse=True)


def _each(cells: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """Every text of the frame changed; numbers stay."""
    return cells.map(lambda value: change(value) if isinstance(value, str) else value)


def notes(cells: pd.DataFrame) -> list[str]:
    """What a reader of the table must know."""
    lines = [f"model.preset={text}" for text in sorted(set(cells["settings"]) - {"checkpoint"})]
    if (cells["data"] == "mini").any():
        lines.append("data=mini: drawn stand-in images, not the benchmark; compare rows only.")
    if (cells["failed"] > 0).any():
        lines.append("!: some samples failed; the score is over the answered ones.")
    if (cells["judge"] == "rule").any():
        lines.append("MMBench, MM-Vet: answers judged by rule, not by a language model.")
    lines += gate.explanations(cells.loc[cells["method"] != "none", "gate"])
    return lines
