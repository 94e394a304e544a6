"""A caller's annotation of a picture, brought to the grid of its tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from vtprune.methods import TokenLayout


def token_coverage(mask: Tensor, layout: TokenLayout) -> Tensor:
    """Share of every encoder token's cell that annotated objects cover, ``[tiles, patches]``.

    Args:
        mask: ``[height, width]``, 1 or True on objects. It covers the whole picture, as every view
            of the layout does.
        layout: where the picture's tokens come from.
    """
    table = torch.zeros(layout.n_tiles, layout.patch_grid[0] * layout.patch_grid[1])
    for number, grid in enumerate(layout.grids):
        mine = (layout.view == number) & (layout.tile >= 0)
        share = adaptive_avg_pool2d(mask.float()[None, None].cpu(), grid)[0, 0]
        table[layout.tile[mine], layout.patch[mine]] = share[layout.row[mine], layout.col[mine]]
    return table.to(mask.device)
