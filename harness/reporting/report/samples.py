"""What the report's browser shows of a sample: image, answers of all rows, tokens that stay."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image

from vtprune.harness.reporting.figures import geometry, rows
from vtprune.harness.reporting.tables.analysis import Grid
from vtprune.harness.reporting.tables.lookup import Found
from vtprune.harness.reporting.tables.render import heading, row_label
from vtprune.harness.request.errors import HarnessError
from vtprune.harness.request.terminal import visible
from vtprune.harness.store import index

SIDE = 336  # longest side of an embedded picture
LONGEST = 4000  # signs of a text that the page shows


def runs(grid: Grid) -> list[tuple[str, str]]:
    """(row key, shown name) of the rows, the baseline first."""
    ordered = sorted(grid.table.rows, key=lambda row: not row.is_baseline)
    return [
        (row.key, row_label(row) + (f" {row.ratio:.2g}" if row.ratio else "")) for row in ordered
    ]


def collect(grid: Grid, results: Path, limit: int) -> dict[str, Any]:
    """Samples, images and names as the page's script reads them; ``limit`` per benchmark."""
    names = runs(grid)
    samples: list[dict[str, Any]] = []
    images: dict[str, str] = {}
    benches = []
    for bench in grid.table.benches:
        cells = _first_runs(grid, bench)
        if not cells:
            continue
        benches.append({"key": bench, "label": heading(bench)})
        samples += _of_bench(bench, cells, [key for key, _ in names], results, limit, images)
    baseline = next((i for i, (key, _) in enumerate(names) if key.startswith("baseline")), -1)
    return {
        "benches": benches,
        "runs": [name for _, name in names],
        "baseline": baseline,
        "first": len(names) - 1,
        "samples": samples,
        "images": images,
    }


def _first_runs(grid: Grid, bench: str) -> dict[str, Found]:
    """First finished run (seed) of each row."""
    found = {}
    for row in grid.table.rows:
        done = [cell for cell in grid.at(row, bench).cells if cell.result]
        if done:
            found[row.key] = done[0]
    return found


def _of_bench(
    bench: str,
    cells: Mapping[str, Found],
    order: Sequence[str],
    results: Path,
    limit: int,
    images: dict[str, str],
) -> list[dict[str, Any]]:
    journals = {key: index.entries(cell.folder) for key, cell in cells.items() if cell.folder}
    docs = _interesting(journals, limit)
    try:
        pictures = rows.images(next(iter(cells.values())).folder, docs, results)
    except (HarnessError, OSError):  # the data are elsewhere: the page says so and shows the text
        pictures = {}
    scores = [e["score"] for j in journals.values() for e in j.values() if e.get("score")]
    made = []
    for doc in docs:
        entries = {key: journal[doc] for key, journal in journals.items() if doc in journal}
        first = next(iter(entries.values()))
        image = pictures.get(doc)
        name = f"{bench}:{doc}"
        if image is not None:
            images[name] = embedded(image)
        answers = {
            order.index(key): _answer(entry, image, cells[key]) for key, entry in entries.items()
        }
        made.append(
            {
                "bench": bench,
                "doc": doc,
                "full": max(scores, default=1),
                "question": shortened(first["prompt"]),
                "reference": _reference(first.get("reference")),
                "image": name if image is not None else None,
                "answers": answers,
            }
        )
    return made


def _interesting(journals: Mapping[str, Mapping[int, Any]], limit: int) -> list[int]:
    """Rows on which the runs disagree first, then the others, in order of the benchmark."""
    docs = sorted({doc for journal in journals.values() for doc in journal})

    def spread(doc: int) -> int:
        scores = {j[doc].get("score") for j in journals.values() if doc in j}
        return -len(scores)

    return sorted(sorted(docs, key=lambda doc: (spread(doc), doc))[:limit])


def _answer(entry: Mapping[str, Any], image: PIL.Image.Image | None, cell: Found) -> dict[str, Any]:
    made: dict[str, Any] = {
        "a": shortened(entry["answer"]), "s": entry.get("score"), "e": shortened(entry["error"])
    }  # fmt: skip
    record = entry.get("pruning")
    if image is None or not record:
        return made
    model_type = (cell.result or {})["identity"]["model"]["model_type"]
    try:
        found = geometry.panels(record, image.size, model_type)
    except HarnessError:
        return made
    alive = geometry.kept(record)
    made["v"] = f"{int(alive.sum())} of {len(alive)} visual tokens stay"
    ends, all_ends = geometry.newline_kept(record, found)
    if all_ends:
        made["v"] += f", {ends} of {all_ends} row ends among them"
    made["p"] = [_panel(panel, alive) for panel in found]
    return made


def _panel(panel: geometry.Panel, alive: Any) -> dict[str, Any]:
    height, width = panel.tokens.shape
    bits = "".join("1" if kept else "0" for kept in alive[panel.tokens].ravel())
    return {"n": panel.name, "r": height, "c": width, "k": bits, "box": list(panel.region)}


def _reference(value: Any) -> str:
    if isinstance(value, list):
        value = " | ".join(dict.fromkeys(str(v) for v in value))
    return "" if value is None else str(shortened(str(value)))


def shortened(text: str | None) -> str | None:
    """A text as the page shows it: no control characters, and no megabytes of it."""
    if text is None:
        return None
    text, more = visible(text[:LONGEST]), len(text) - LONGEST
    return f"{text} ... ({more} more signs)" if more > 0 else text


def embedded(image: PIL.Image.Image) -> str:
    """The picture as a data URL, no larger than needed."""
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
