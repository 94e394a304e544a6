"""Figure 6: which tokens stay, over the image, for methods and ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image

from vtprune.harness.reporting.figures import geometry, paper, rows
from vtprune.harness.reporting.tables.analysis import Grid
from vtprune.harness.reporting.tables.lookup import Found
from vtprune.harness.reporting.tables.render import row_label
from vtprune.harness.request.errors import ConfigError
from vtprune.harness.store import index


def kept_tokens(grid: Grid, bench: str, doc: int, results: Any) -> Any:
    """One panel per method and ratio; two where a base view and crops go to the model.

    Raises:
        ConfigError: the table has no finished pruned cell of this benchmark.
    """
    cells = _finished(grid, bench)
    if not cells:
        raise ConfigError(f"table {grid.table.name} has no finished pruned cell of {bench}")
    image = rows.images(next(iter(cells.values())).folder, [doc], results)[doc]
    methods = list(dict.fromkeys((row.block, row_label(row)) for row, _ in _ordered(cells)))
    ratios = sorted({row.ratio for row, _ in _ordered(cells)})
    made, axes = paper.figure(len(methods), len(ratios) + 1, 1.75, 1.95)
    for axis in axes.flat:
        axis.set_axis_off()
    axes[0, 0].imshow(np.asarray(image))
    axes[0, 0].set_title("image", fontsize=8)
    for row, cell in _ordered(cells):
        axis = axes[methods.index((row.block, row_label(row))), 1 + ratios.index(row.ratio)]
        _draw(axis, cell, doc, image, f"{row_label(row)}, {row.ratio:.2g}")
    entry = index.entries(next(iter(cells.values())).folder)[doc]
    made.suptitle(f"{bench} {doc}: {entry['prompt'].splitlines()[0]}", fontsize=9)
    return made


def _finished(grid: Grid, bench: str) -> dict[str, Found]:
    """First finished run of each pruned row."""
    found = {}
    for row in grid.table.rows:
        value = grid.at(row, bench)
        done = [cell for cell in value.cells if cell.result]
        if done and not row.is_baseline:
            found[row.key] = done[0]
    return found


def _ordered(cells: Mapping[str, Found]) -> Sequence[tuple[Any, Found]]:
    return [(cell.wanted.row, cell) for cell in cells.values()]


def _draw(axis: Any, cell: Found, doc: int, image: PIL.Image.Image, title: str) -> None:
    entry = index.entries(cell.folder)[doc]
    record = entry["pruning"]
    model_type = (cell.result or {})["identity"]["model"]["model_type"]
    found = geometry.panels(record, image.size, model_type)
    kept = geometry.kept(record)
    parts = [geometry.veiled(image, panel, kept) for panel in found]
    axis.imshow(_beside(parts))
    ends, all_ends = geometry.newline_kept(record, found)
    row_ends = f", {ends}/{all_ends} row ends" if all_ends else ""
    right = "" if entry.get("score") is None else (" right" if entry["score"] > 0 else " wrong")
    answer = str(entry["answer"])[:18]
    axis.set_title(
        f"{title}\n{int(kept.sum())}/{len(kept)} kept{row_ends}\n{answer!r}{right}", fontsize=6.5
    )


def _beside(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures side by side on white, as high as the highest."""
    height = max(part.shape[0] for part in parts)
    gap = np.full((height, 8, 3), 255, dtype=np.uint8)
    out = []
    for part in parts:
        padded = np.full((height, part.shape[1], 3), 255, dtype=np.uint8)
        padded[: part.shape[0]] = part
        out += [padded, gap]
    return np.concatenate(out[:-1], axis=1)
