"""Search of a FitPrune recipe: how many visual tokens each layer deletes under a budget.

Pure: the model enters only through the :class:`Replay` objects a caller supplies, one per
calibration sample. A trial ``alpha`` replays all samples layer by layer; in each layer those tokens
go whose removal leaves at least ``1 - alpha`` of the attention that the unpruned model gives to
visual tokens, both from the text (cross) and among themselves (self). ``alpha`` is bisected until
the cost meets the budget. Source: FitPrune (arXiv 2409.10197) and its release.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from vtprune.methods.errors import MethodError

Budget = Literal["visual_macs", "mean_tokens", "total_flops"]


class Replay(Protocol):
    """One calibration sample on its way through the layers of one trial."""

    def attend(self) -> tuple[Tensor, Tensor]:
        """Run the next layer on the visual tokens alive.

        Returns:
            ``cross [V]`` and ``self [V]``: head-wise maximum of the attention each token receives,
            mean over the text rows after the image, and mean over the visual rows alive.
        """
        ...

    def keep(self, indices: Tensor) -> None:
        """Go on with these of the tokens alive only (sorted)."""
        ...


class OfflineReplay:
    """Replay of statistics taken once from the unpruned model; a deletion drops entries.

    Nothing is normalised anew, so later layers answer as if the deleted tokens were still read.

    Args:
        cross, self_: ``[L, V]``, what ``attend`` returns in each layer of the unpruned model.
    """

    def __init__(self, cross: Tensor, self_: Tensor) -> None:
        self._layers = iter(zip(cross, self_, strict=True))
        self._alive = torch.arange(cross.shape[1])

    def attend(self) -> tuple[Tensor, Tensor]:
        cross, self_ = next(self._layers)
        return cross[self._alive], self_[self._alive]

    def keep(self, indices: Tensor) -> None:
        self._alive = self._alive[indices]


@dataclass(frozen=True)
class Costs:
    """What a layer costs, in the unit of the budget.

    Attributes:
        n_layers: depth of the model.
        n_visual: visual tokens per sample, one number or one per sample.
        width, mlp_width: sizes of a layer.
        n_text: text tokens per sample (only ``total_flops`` counts them).
        kv_width: width of keys and of values; None = ``width``.
    """

    n_layers: int
    n_visual: int | Sequence[int]
    width: int
    mlp_width: int
    n_text: Sequence[int] = ()
    kv_width: int | None = None
    budget: Budget = "visual_macs"

    def _linear(self) -> tuple[float, float]:
        """MACs per token before and after the place in a layer where tokens are deleted."""
        kv = self.width if self.kv_width is None else self.kv_width
        before = self.width * (self.width + 2 * kv)
        return before, self.width * self.width + 3 * self.width * self.mlp_width

    def visual(self, sample: int) -> int:
        """Visual tokens of a sample before anything is deleted."""
        return self.n_visual if isinstance(self.n_visual, int) else self.n_visual[sample]

    def _text(self, sample: int) -> int:
        return self.n_text[sample] if self.budget == "total_flops" else 0

    def entering(self, sample: int, visual: int) -> float:
        """Projections to queries, keys, values, and attention, of the tokens entering."""
        before, after = self._linear()
        if self.budget == "mean_tokens":
            return visual * before / (before + after)
        n = visual + self._text(sample)
        return n * before + 2 * n * n * self.width

    def leaving(self, sample: int, visual: int) -> float:
        """Output projection and MLP of the tokens leaving."""
        before, after = self._linear()
        if self.budget == "mean_tokens":
            return visual * after / (before + after)
        return (visual + self._text(sample)) * after

    def layer(self, sample: int, visual: int) -> float:
        return self.entering(sample, visual) + self.leaving(sample, visual)


class Trial(NamedTuple):
    """One replay: deletions per layer, whether the budget was met, and the reduction achieved."""

    alpha: float
    reached: bool
    deletions: tuple[int, ...]
    reduction: float


class SearchResult(NamedTuple):
    """The chosen recipe (deletions per layer, in tokens) and all trials."""

    recipe: tuple[int, ...]
    trials: tuple[Trial, ...]


def removable(received: Tensor, total: float, alpha: float) -> Tensor:
    """bool ``[V]``: tokens of ``received [V]`` that may go for one of the two criteria.

    With ``i`` the first number of smallest entries whose removal leaves less than
    ``(1 - alpha) * total``, the ``i - 1`` smallest may go.
    """
    value, order = torch.sort(received.double(), stable=True)
    left = value.sum() - torch.cat([value.new_zeros(1), value.cumsum(0)[:-1]])
    below = torch.nonzero(left < (1 - alpha) * total)
    first = int(below[0]) if len(below) else len(value) - 1
    chosen = torch.zeros(len(value), dtype=torch.bool, device=received.device)
    chosen[order[: max(first - 1, 0)]] = True
    return chosen


def run_trial(
    replays: Sequence[Replay],
    totals: Sequence[Sequence[tuple[float, float]]],
    alpha: float,
    target: float,
    costs: Costs,
    progress: Callable[[], None] | None = None,
) -> Trial:
    """Replay all samples with one ``alpha``, until the budget is met or the layers end.

    Args:
        replays: one per sample, at layer 0.
        totals: per sample and layer the sums of ``cross`` and ``self`` in the unpruned model.
        target: fraction of the unpruned cost to be saved.
    """
    samples = range(len(replays))
    baseline = sum(costs.n_layers * costs.layer(s, costs.visual(s)) for s in samples)
    alive, spent = [costs.visual(s) for s in samples], 0.0
    deletions = [0] * costs.n_layers
    for layer in range(costs.n_layers):
        spent += sum(costs.entering(s, alive[s]) for s in samples)
        later = costs.n_layers - 1 - layer
        forecast = sum(
            costs.leaving(s, alive[s]) + later * costs.layer(s, alive[s]) for s in samples
        )
        if spent + forecast <= (1 - target) * baseline:
            return Trial(alpha, True, tuple(deletions), 1 - (spent + forecast) / baseline)
        gone = 0
        for s in samples:
            cross, self_ = replays[s].attend()
            total_cross, total_self = totals[s][layer]
            out = removable(cross, total_cross, alpha) & removable(self_, total_self, alpha)
            replays[s].keep(torch.nonzero(~out).squeeze(1))
            gone += int(out.sum())
            alive[s] -= int(out.sum())
            if progress:
                progress()
        deletions[layer] = gone // len(replays)
        spent += sum(costs.leaving(s, alive[s]) for s in samples)
    return Trial(alpha, False, tuple(deletions), 1 - spent / baseline)


def search_recipe(
    start: Callable[[], Sequence[Replay]],
    totals: Sequence[Sequence[tuple[float, float]]],
    target: float,
    costs: Costs,
    *,
    tolerance: float = 0.01,
    return_last_trial: bool = False,
    progress: Callable[[], None] | None = None,
) -> SearchResult:
    """Bisect ``alpha`` in [0, 1] for the gentlest recipe that saves ``target`` of the cost.

    The release returns the last recipe it tried, whether that one met the budget or not
    (``return_last_trial``); here it is the last one that did.

    Args:
        start: fresh replays of all samples, for one trial.
        totals: see :func:`run_trial`.
        progress: called after each layer of each sample.

    Raises:
        MethodError: no trial met the budget.
    """
    low, high, trials = 0.0, 1.0, []
    while high - low > tolerance:
        alpha = (low + high) / 2
        trials.append(run_trial(start(), totals, alpha, target, costs, progress))
        low, high = (low, alpha) if trials[-1].reached else (alpha, high)
    met = [trial for trial in trials if trial.reached]
    if return_last_trial:
        return SearchResult(trials[-1].deletions, tuple(trials))
    if not met:
        best = max(trial.reduction for trial in trials)
        raise MethodError(
            f"fitprune: no recipe saves {target:g} of {costs.budget}; on these samples the "
            f"feasible range is [0, {math.floor(best * 1000) / 1000:.3f}]"
        )
    return SearchResult(met[-1].deletions, tuple(trials))
