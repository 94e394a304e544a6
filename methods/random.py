"""Random pruning: the control every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtprune.methods import ops
from vtprune.methods.registry import register
from vtprune.methods.tokens import TokenMethod
from vtprune.methods.views import View


@register("random")
@dataclass(frozen=True, kw_only=True)
class RandomPruning(TokenMethod):
    """Uniform draw without replacement, per view, row-end tokens kept.

    Baseline of the G-Prune paper (arXiv 2501.02268, Table 1), which does not say whether views are
    drawn apart or how the draw is seeded; here each view is drawn apart and the draw depends on the
    run seed, the sample and the view alone, never on batch or order of evaluation.
    """

    title = "Random"
    paper = "arXiv:2501.02268"

    def score(self, view: View) -> Tensor:
        return ops.seeded_uniform(len(view), self.seed, *view.key).to(view.device)
