"""Defects known from published ports, put back on purpose: the goldens must notice each of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.golden_tools import Golden
from tests.test_goldens import CHECKERS
from vtprune.methods import (
    base,
    cdpruner,
    dart,
    divprune,
    fitprune_search,
    gprune,
    holov,
    ops,
    sparsevlm,
    tome,
    visionzip,
    vispruner,
)
from vtprune.methods.base import LayerMethod, PruningMethod, Selection, TokenMethod
from vtprune.methods.fastv import FastV
from vtprune.methods.fitprune import FitPrune

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
    inner = tome.merge_round

    def merge_round(state: tome.Merged, metric: torch.Tensor, q: int) -> tuple:
        return inner(state._replace(size=torch.ones_like(state.size)), metric, q)

    patch.setattr(tome, "merge_round", merge_round)


def one_criterion_is_enough(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        fitprune_search,
        "removable",
        lambda received, total, alpha: received < received.double().quantile(alpha / 2),
    )


def nearest_point_first(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        "tests.test_goldens.farthest_points",
        lambda distance, k: divprune.farthest_points(2 - distance, k),
    )


def relevance_not_negated(patch: pytest.MonkeyPatch) -> None:
    inner = cdpruner.question_relevance
    patch.setattr("tests.test_goldens.question_relevance", lambda s: inner(-s))
    patch.setattr(cdpruner, "question_relevance", lambda s: inner(-s))


def relevance_per_crop(patch: pytest.MonkeyPatch) -> None:
    inner = cdpruner.question_relevance

    def crop_by_crop(similarity: torch.Tensor) -> torch.Tensor:
        rows = similarity.reshape(-1, similarity.shape[-1])
        return torch.stack([inner(row) for row in rows]).reshape(similarity.shape)

    patch.setattr("tests.test_goldens.question_relevance", crop_by_crop)


def quotas_rounded_to_nearest(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(holov, "quotas", lambda weights, k: (weights * k).round().long())


def merged_without_target(patch: pytest.MonkeyPatch) -> None:
    def mean_only(x: torch.Tensor, contextual: visionzip.Contextual) -> torch.Tensor:
        return visionzip.contextual_features(x, contextual) - x[contextual.targets]

    patch.setattr("tests.test_goldens.contextual_features", mean_only)


def neighbours_with_itself(patch: pytest.MonkeyPatch) -> None:
    def nearest(keys: torch.Tensor, chosen: torch.Tensor, count: int) -> torch.Tensor:
        u = ops.unit(keys)
        return ops.top_k(u[chosen] @ u.mT, count)

    patch.setattr("tests.test_goldens.neighbours", nearest)


def most_similar_taken(patch: pytest.MonkeyPatch) -> None:
    inner = dart.least_similar

    def most(state: torch.Tensor, pivots: torch.Tensor, *rest: object) -> list[torch.Tensor]:
        return inner(state, -pivots, *rest)

    patch.setattr("tests.test_goldens.least_similar", most)


def fraction_of_current_tokens(patch: pytest.MonkeyPatch) -> None:
    inner = PruningMethod.count
    patch.setattr(PruningMethod, "count", lambda self, n, ratio=None: inner(self, n // 2, ratio))


def all_text_rates(patch: pytest.MonkeyPatch) -> None:
    inner = sparsevlm.relevance

    def everyone(rows: torch.Tensor, raters: torch.Tensor) -> torch.Tensor:
        return inner(rows, torch.arange(rows.shape[1]))

    patch.setattr(sparsevlm, "relevance", everyone)


def five_neighbours_make_density(patch: pytest.MonkeyPatch) -> None:
    inner = torch.Tensor.sort

    def sort(self: torch.Tensor, *args: object, **kw: object):
        found = inner(self, *args, **kw)
        if self.dim() == 2 and self.shape[0] == self.shape[1]:
            return type("Found", (), {"values": found.values[:, :5], "indices": found.indices})
        return found

    patch.setattr(torch.Tensor, "sort", sort)


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
    (keep_lowest, "fastervlm/case_0"),
    (keep_lowest, "pyramiddrop/case_0"),
    (nearest_point_first, "divprune/case_0"),
    (relevance_not_negated, "cdpruner/case_0"),
    (relevance_per_crop, "cdpruner/case_2"),
    (quotas_rounded_to_nearest, "holov/case_0"),
    (merged_without_target, "visionzip/case_0"),
    (neighbours_with_itself, "prumerge/case_0"),
    (most_similar_taken, "dart/case_0"),
    (fraction_of_current_tokens, "pyramiddrop/case_1"),
    (all_text_rates, "sparsevlm/case_0"),
    (five_neighbours_make_density, "sparsevlm/case_0"),
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
