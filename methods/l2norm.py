"""Tokens with the largest norm stay: G-Prune without its graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtprune.methods.registry import register
from vtprune.methods.tokens import TokenMethod
from vtprune.methods.views import View


@register("l2norm")
@dataclass(frozen=True, kw_only=True)
class L2Norm(TokenMethod):
    """Keep the tokens with the largest l2 norm, per view, row-end tokens kept.

    Ablation of the G-Prune paper (arXiv 2501.02268, Table 2); not in its release, so there is
    nothing to deviate from.
    """

    title = "l2 norm only"
    paper = "arXiv:2501.02268, Table 2"

    def score(self, view: View) -> Tensor:
        return torch.linalg.vector_norm(view.features, dim=-1)
