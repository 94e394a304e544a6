"""Defects known from published ports, put back on purpose: the goldens must notice each of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from methods import base, fitprune_search, gprune, ops, tome, vispruner
from methods.base import LayerMethod, PruningMethod, Selection, TokenMethod
from methods.fastv import FastV
from methods.fitprune import FitPrune
from tests.golden_tools import Golden
from tests.test_goldens import CHECKERS

GOLDENS = Path(__file__).parents[1] / "goldens"
Mutation = Callable[[pytest.MonkeyPatch], None]
SCORED = ("gprune/case_1", "fastv/case_0", "sequential/case_0", "fitprune/case_0")


def keep_lowest(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ops, "top_k", lambda score, k: torch.sort(score, stable=True).indices[..., :k])


def score_order(patch: pytest.MonkeyPatch) -> None:
    def unsorted_select(self: LayerMethod, signals: base.LayerSignals, k: int) -> Selection:
        return Selection(self.select(signals, k))

    def unsorted_keep(self: TokenMethod, image: base.ImageTokens) -> Selection:
        views = self._views(image)
        parts = [v.index[self.select(v, self.count(len(v)))] for v in views]
        return Selection(torch.cat([*parts, torch.nonzero(image.layout.newline).squeeze(1)]))

    patch.setattr(LayerMethod, "checked_select", unsorted_select)
    patch.setattr(TokenMethod, "keep", unsorted_keep)


def ratio_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PruningMethod, "count", lambda self, n, ratio=None: max(1, n // 3))


def one_token_too_few(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(base, "n_keep", lambda n, ratio, rounding="floor": int((1 - ratio) * n))


def newlines_dropped(patch: pytest.MonkeyPatch) -> None:
    inner = TokenMethod._from_views

    def without(self: TokenMethod, image: base.ImageTokens, *rest: list) -> Selection:
        kept = inner(self, image, *rest).indices
        return Selection(kept[~image.layout.newline[kept]])

    patch.setattr(TokenMethod, "_from_views", without)


def transposed_chain(patch: pytest.MonkeyPatch) -> None:
    def propagate(graph: gprune.TokenGraph, v: torch.Tensor, iterations: int) -> torch.Tensor:
        for _ in range(iterations):
            v = torch.mv(graph.weights, v) / graph.row_sum
        return v

    patch.setattr(gprune, "propagate", propagate)


def degree_without_itself(patch: pytest.MonkeyPatch) -> None:
    inner = gprune.token_graph

    def token_graph(*args: object, **options: object) -> gprune.TokenGraph:
        graph = inner(*args, **options)
        return graph._replace(degree=graph.degree - 1)

    patch.setattr(gprune, "token_graph", token_graph)


def heads_by_maximum(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FastV, "score", lambda self, s: s.signal("last_row").amax(dim=0))


def only_cross_attention(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FitPrune, "score", lambda self, s: s.signal("cross"))


def one_layer_late(patch: pytest.MonkeyPatch) -> None:
    inner = FitPrune.schedule
    patch.setattr(FitPrune, "schedule", lambda self, n, v: (v, *inner(self, n, v)[:-1]))


def least_similar_first(patch: pytest.MonkeyPatch) -> None:
    inner = ops.best_pairs

    def best_pairs(similarity: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(part.flip(-1) for part in inner(similarity))

    patch.setattr(ops, "best_pairs", best_pairs)


def diverse_part_in_raster_order(patch: pytest.MonkeyPatch) -> None:
    inner = vispruner.important_and_diverse

    def sorted_diverse(*args: object) -> tuple[torch.Tensor, torch.Tensor]:
        important, diverse = inner(*args)
        return important, diverse.sort(dim=1).values

    patch.setattr("tests.test_goldens.important_and_diverse", sorted_diverse)


def unweighted_means(patch: pytest.MonkeyPatch) -> None:
    inner = tome._merge_round

    def merge_round(state: tome.Merged, metric: torch.Tensor, q: int) -> tuple:
        return inner(state._replace(size=torch.ones_like(state.size)), metric, q)

    patch.setattr(tome, "_merge_round", merge_round)


def one_criterion_is_enough(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        fitprune_search,
        "removable",
        lambda received, total, alpha: received < received.double().quantile(alpha / 2),
    )


CASES: list[tuple[Mutation, str]] = [
    *((keep_lowest, case) for case in SCORED),
    *((score_order, case) for case in SCORED),
    *((ratio_ignored, case) for case in (*SCORED[:3], "tome/case_1", "vispruner/case_1")),
    (one_token_too_few, "vispruner/case_5_odd"),
    (one_token_too_few, "fastv/case_4"),
    (newlines_dropped, "gprune/case_0"),
    (transposed_chain, "gprune/case_1"),
    (degree_without_itself, "gprune/case_1"),
    (heads_by_maximum, "fastv/case_1"),
    (only_cross_attention, "fitprune/case_1"),
    (one_layer_late, "fitprune/e2e_r50"),
    (least_similar_first, "vispruner/case_0"),
    (least_similar_first, "tome/case_1"),
    (diverse_part_in_raster_order, "vispruner/case_0"),
    (unweighted_means, "tome/case_2"),
    (one_criterion_is_enough, "fitprune/recipe_0"),
]


@pytest.mark.parametrize(
    ("mutation", "case"), CASES, ids=[f"{m.__name__}-{case}" for m, case in CASES]
)
def test_goldens_notice(mutation: Mutation, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Golden(GOLDENS / f"{case}.npz")
    check = CHECKERS[case.split("/")[0]]
    check(golden)
    mutation(monkeypatch)
    with pytest.raises((AssertionError, base.MethodError)):
        check(golden)
