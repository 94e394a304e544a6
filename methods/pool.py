"""Neighbours are averaged: the control that keeps a little of everything."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtprune.methods.base import MethodError, Selection, TokenMethod, View
from vtprune.methods.registry import register


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
        cells = pool_cells(rows, cols, k).to(view.features.device)
        by_cell = torch.argsort(cells, stable=True)
        lengths = torch.bincount(cells, minlength=k)
        means = torch.segment_reduce(view.features[by_cell], "mean", lengths=lengths, axis=0)
        middle = by_cell[lengths.cumsum(0) - lengths + lengths // 2]
        return Selection(middle, means)
