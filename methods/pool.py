"""Neighbours are averaged: the control that keeps a little of everything."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtprune.methods.errors import MethodError
from vtprune.methods.ops import Groups
from vtprune.methods.registry import register
from vtprune.methods.tokens import TokenMethod
from vtprune.methods.views import Selection, View


def pool_cells(rows: int, cols: int, k: int) -> Tensor:
    """``[rows * cols]`` cell of every place of a grid, ``k`` cells in raster order of bands.

    Bands of rows are as equal as possible, and so are the cells within a band; bands get a
    number of cells as near to square as ``k`` allows, so that any ``k`` is met exactly.
    """
    bands = max(1, min(rows, k, round((k * rows / cols) ** 0.5)))
    while k > bands * cols:
        bands += 1
    cells, start = torch.empty(rows, cols, dtype=torch.long), 0
    for band in range(bands):
        top, bottom = band * rows // bands, (band + 1) * rows // bands
        count = (band + 1) * k // bands - band * k // bands
        cells[top:bottom] = start + torch.arange(cols) * count // cols
        start += count
    return cells.flatten()


@register("pool")
@dataclass(frozen=True, kw_only=True)
class Pool(TokenMethod):
    """Average the tokens of rectangular cells of the grid, all of nearly the same size.

    A control of ours, no paper: what a plain down-sampling of the features achieves. A cell's mean
    takes the place of the token in its middle.
    """

    title = "average pooling"
    paper = "-"
    merges = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scope == "joint" or self.newline == "candidate":
            raise MethodError("pool: cells need the grid of a view; use scope=per_view")

    def select(self, view: View, k: int) -> Selection:
        n = len(view)
        rows, cols = view.grid if view.grid and view.grid[0] * view.grid[1] == n else (1, n)
        cells = Groups(pool_cells(rows, cols, k).to(view.device), k)
        middle = cells.order[cells.sizes.cumsum(0) - cells.sizes + cells.sizes // 2]
        return Selection(middle, cells.sum(view.features) / cells.sizes[:, None])
