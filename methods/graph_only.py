"""G-Prune without token norms: only the place of a token in the graph counts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtprune.methods.gprune import GPrune
from vtprune.methods.registry import register
from vtprune.methods.views import View


@register("graph_only")
@dataclass(frozen=True, kw_only=True)
class GraphOnly(GPrune):
    """G-Prune whose tokens all start with the same information.

    Ablation of the G-Prune paper (arXiv 2501.02268, Table 2); not in its release. Options and
    deviations as in G-Prune.
    """

    title = "graph only"
    paper = "arXiv:2501.02268, Table 2"

    def initial(self, view: View) -> Tensor:
        return torch.ones(len(view), device=view.device, dtype=view.features.dtype)
