"""Defects known from published ports, put back on purpose: the goldens must notice each of them.

Every defect sits in the product, where the method's class or its module uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import golden_layers, golden_recipes, golden_tokens  # noqa: F401 (they register)
from tests.golden_tools import CHECKERS, Golden
from tests.mutation.tools import Defects, assert_noticed
from vtprune import methods
from vtprune.methods import (
    LayerMethod,
    PruningMethod,
    Selection,
    TokenMethod,
    cdpruner,
    dart,
    divprune,
    fitprune_search,
    gprune,
    holov,
    merging,
    ops,
    prumerge,
    sparsevlm,
    visionzip,
    vispruner,
)

GOLDENS = Path(__file__).parents[1] / "goldens"
Defect = Callable[[Defects], None]
SCORED = ("gprune/case_1", "fastv/case_0", "sequential/case_0", "fitprune/case_0")


def cls(name: str) -> type[PruningMethod]:
    return methods.get(name)


# --- counting, ranking, order -------------------------------------------------------------------


def keep_lowest(put: Defects) -> None:
    def lowest(score: torch.Tensor, k: int) -> torch.Tensor:
        return torch.sort(score, stable=True).indices[..., :k]

    put.swap(ops, "top_k", lambda inner: lowest)


def score_order(put: Defects) -> None:
    def unsorted_keep(self: TokenMethod, image: methods.ImageTokens) -> Selection:
        views = self._views(image)
        parts = [v.index[self.select(v, self.count(len(v)))] for v in views]
        return Selection(torch.cat([*parts, torch.nonzero(image.layout.newline).squeeze(1)]))

    put.swap(TokenMethod, "keep", lambda inner: unsorted_keep)


def score_order_inside(put: Defects) -> None:
    def unsorted_select(self: LayerMethod, signals: methods.LayerSignals, k: int) -> Selection:
        return Selection(self.select(signals, k))

    put.swap(LayerMethod, "checked_select", lambda inner: unsorted_select)


def ratio_ignored(put: Defects) -> None:
    put.swap(PruningMethod, "count", lambda inner: lambda self, n, ratio=None: max(1, n // 3))


def counts_rounded_up(put: Defects) -> None:
    put.swap(
        PruningMethod, "count", lambda inner: lambda self, *a, **kw: inner(self, *a, **kw) + 1
    )


def newlines_dropped(put: Defects) -> None:
    def without(inner):
        def keep(self: TokenMethod, image: methods.ImageTokens) -> Selection:
            kept = inner(self, image).indices
            return Selection(kept[~image.layout.newline[kept]])

        return keep

    put.swap(TokenMethod, "keep", without)


def one_layer_late(put: Defects) -> None:
    late = lambda inner: lambda self, n, v: (v, *inner(self, n, v)[:-1])  # noqa: E731
    put.swap(cls("fitprune"), "schedule", late)


def positions_renumbered(put: Defects) -> None:
    put.swap(PruningMethod, "__post_init__", lambda inner: _renumbered(inner))


def _renumbered(inner):
    def after(self: PruningMethod) -> None:
        object.__setattr__(self, "positions", "compact")
        inner(self)

    return after


# --- one method each ----------------------------------------------------------------------------


def transposed_chain(put: Defects) -> None:
    def propagate(graph: gprune.TokenGraph, v: torch.Tensor, iterations: int) -> torch.Tensor:
        for _ in range(iterations):
            v = torch.mv(graph.weights, v) / graph.row_sum
        return v

    put.swap(gprune, "propagate", lambda inner: propagate)


def degree_without_itself(put: Defects) -> None:
    def less(graph: gprune.TokenGraph) -> gprune.TokenGraph:
        return graph._replace(degree=graph.degree - 1)

    put.swap(gprune, "token_graph", lambda inner: lambda *a, **kw: less(inner(*a, **kw)))


def heads_by_maximum(put: Defects) -> None:
    put.swap(
        cls("fastv"), "score", lambda inner: lambda self, s: s.signal("last_row").amax(dim=0)
    )


def only_cross_attention(put: Defects) -> None:
    put.swap(cls("fitprune"), "score", lambda inner: lambda self, s: s.signal("cross"))


def least_similar_first(put: Defects) -> None:
    put.swap(ops, "best_pairs", lambda inner: lambda s: tuple(p.flip(-1) for p in inner(s)))


def diverse_part_in_raster_order(put: Defects) -> None:
    def ordered(inner):
        def both(*args: object) -> tuple[torch.Tensor, torch.Tensor]:
            important, diverse = inner(*args)
            return important, diverse.sort(dim=1).values

        return both

    put.swap(vispruner, "important_and_diverse", ordered)


def unweighted_means(put: Defects) -> None:
    def plain(inner):
        def merge_round(state: ops.Merged, metric: torch.Tensor, q: int) -> tuple:
            return inner(state._replace(size=torch.ones_like(state.size)), metric, q)

        return merge_round

    put.swap(merging, "merge_round", plain)


def one_criterion_is_enough(put: Defects) -> None:
    def removable(received: torch.Tensor, total: object, alpha: float) -> torch.Tensor:
        return received < received.double().quantile(alpha / 2)

    put.swap(fitprune_search, "removable", lambda inner: removable)


def nearest_point_first(put: Defects) -> None:
    put.swap(divprune, "farthest_points", lambda inner: lambda d, k: inner(2 - d, k))


def relevance_not_negated(put: Defects) -> None:
    put.swap(cdpruner, "question_relevance", lambda inner: lambda s: inner(-s))


def question_left_out(put: Defects) -> None:
    put.swap(cdpruner, "greedy_dpp", lambda inner: lambda x, r, k: inner(x, torch.ones_like(r), k))


def crops_decided_apart(put: Defects) -> None:
    """CDPruner crop by crop: relevance has a range of its own in each."""

    def apart(inner):
        def select_all(self, views: list, counts: list) -> list:
            return [inner(self, [view], [k])[0] for view, k in zip(views, counts, strict=True)]

        return select_all

    put.swap(cls("cdpruner"), "select_all", apart)


def quotas_rounded_to_nearest(put: Defects) -> None:
    put.swap(holov, "quotas", lambda inner: lambda weights, k: (weights * k).round().long())


def paper_form_for_released(put: Defects) -> None:
    def select(inner):
        def clean(self, view, k):
            return inner(self.replace(variant="clean"), view, k)

        return clean

    put.swap(cls("holov"), "select", select)


def merged_without_target(put: Defects) -> None:
    def mean_only(inner):
        return lambda x, contextual: inner(x, contextual) - x[contextual.targets]

    put.swap(visionzip, "contextual_features", mean_only)


def merged_rows_reversed(put: Defects) -> None:
    put.swap(
        visionzip, "contextual_features", lambda inner: lambda x, c: inner(x, c).flip(0)
    )


def features_in_place_of_keys(put: Defects) -> None:
    def metric(inner):
        return lambda self, view, k: inner(self.replace(metric="features"), view, k)

    put.swap(cls("visionzip"), "select", metric)


def neighbours_with_itself(put: Defects) -> None:
    def nearest(keys: torch.Tensor, chosen: torch.Tensor, count: int) -> torch.Tensor:
        u = ops.unit(keys)
        return ops.top_k(u[chosen] @ u.mT, count)

    put.swap(prumerge, "neighbours", lambda inner: nearest)


def residual_left_out(put: Defects) -> None:
    put.swap(
        prumerge,
        "absorb",
        lambda inner: lambda *a: torch.cat([(m := inner(*a))[:-1], torch.zeros_like(m[-1:])]),
    )


def plus_is_plain(put: Defects) -> None:
    put.swap(cls("prumerge_plus"), "choose", lambda inner: cls("prumerge").choose)


def most_similar_taken(put: Defects) -> None:
    def most(inner):
        return lambda state, pivots, *rest: inner(state, -pivots, *rest)

    put.swap(dart, "least_similar", most)


def image_pivots_only(put: Defects) -> None:
    def fewer(inner):
        def groups(state: torch.Tensor, pivots: torch.Tensor, taken: torch.Tensor, counts: list):
            half = max(1, len(pivots) // 2)
            each, more = divmod(sum(counts), half)
            return inner(state, pivots[:half], taken, [each + (i < more) for i in range(half)])

        return groups

    put.swap(dart, "least_similar", fewer)


def dart_compares_image_keys(put: Defects) -> None:
    """Keys where hidden states belong."""

    def select(inner):
        def by_keys(self, signals: methods.LayerSignals, k: int):
            swapped = {"normed": "keys", "text_normed": "text_keys"}

            def signal(name: str) -> torch.Tensor:
                found = signals.signal(swapped.get(name, name))
                return found.flatten(1) if name in swapped else found

            fake = methods.LayerSignals(
                signals.layer, signals.n_layers, signals.alive, signals.n_visual, signal
            )
            return inner(self, fake, k)

        return by_keys

    put.swap(cls("dart"), "select", select)


def fraction_of_current_tokens(put: Defects) -> None:
    put.swap(
        PruningMethod,
        "count",
        lambda inner: lambda self, n, ratio=None: inner(self, n // 2, ratio),
    )


def all_text_rates(put: Defects) -> None:
    def everyone(inner):
        return lambda rows, raters: inner(rows, torch.arange(rows.shape[1]))

    put.swap(sparsevlm, "relevance", everyone)


def text_distance_shifted(put: Defects) -> None:
    put.swap(sparsevlm, "rotary_decay", lambda inner: lambda d, *a: inner(d + 40, *a))


def five_neighbours_make_density(put: Defects) -> None:
    sorting = torch.Tensor.sort

    def sort(self: torch.Tensor, *args: object, **kw: object):
        found = sorting(self, *args, **kw)
        if self.dim() == 2 and self.shape[0] == self.shape[1]:
            return type("Found", (), {"values": found.values[:, :5], "indices": found.indices})
        return found

    put.swap(torch.Tensor, "sort", lambda inner: sort)


CASES: list[tuple[Defect, str]] = [
    *((keep_lowest, case) for case in SCORED),
    (score_order, SCORED[0]),
    *((score_order_inside, case) for case in SCORED[1:]),
    *((ratio_ignored, case) for case in (*SCORED[:3], "tome/case_1", "vispruner/case_1")),
    (counts_rounded_up, "vispruner/case_5_odd"),
    (counts_rounded_up, "fastv/case_4"),
    (newlines_dropped, "gprune/case_0"),
    (positions_renumbered, "fastv/case_0"),
    (positions_renumbered, "gprune/case_1"),
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
    (question_left_out, "cdpruner/case_0"),
    (crops_decided_apart, "cdpruner/case_2"),
    (quotas_rounded_to_nearest, "holov/case_0"),
    (paper_form_for_released, "holov/case_0"),
    (merged_without_target, "visionzip/case_0"),
    (merged_rows_reversed, "visionzip/case_0"),
    (features_in_place_of_keys, "visionzip/case_0"),
    (neighbours_with_itself, "prumerge/case_0"),
    (residual_left_out, "prumerge/case_0"),
    (plus_is_plain, "prumerge/case_1"),
    (most_similar_taken, "dart/case_0"),
    (image_pivots_only, "dart/case_0"),
    (dart_compares_image_keys, "dart/case_0"),
    (fraction_of_current_tokens, "pyramiddrop/case_1"),
    (all_text_rates, "sparsevlm/case_0"),
    (five_neighbours_make_density, "sparsevlm/case_0"),
    (text_distance_shifted, "sparsevlm/case_3"),
]


@pytest.mark.parametrize(
    ("defect", "case"), CASES, ids=[f"{d.__name__}-{case}" for d, case in CASES]
)
def test_goldens_notice(defect: Defect, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Golden(GOLDENS / f"{case}.npz")
    assert_noticed(monkeypatch, defect, lambda: CHECKERS[case.split("/")[0]](golden))


@pytest.mark.parametrize("folder", sorted(CHECKERS))
def test_every_folder_asks_the_class_itself(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that keeps the first tokens, whatever it sees, must fail its goldens."""
    owner = cls({"sequential": "seqprune"}.get(folder, folder))
    together = "select_all" in vars(owner)

    def first(self: PruningMethod, what: object, k: Any) -> Any:
        return [torch.arange(n) for n in k] if together else torch.arange(k)

    def defect(put: Defects) -> None:
        put.swap(owner, "select_all" if together else "select", lambda inner: first)

    golden = Golden(GOLDENS / folder / "case_0.npz")
    assert_noticed(monkeypatch, defect, lambda: CHECKERS[folder](golden))
