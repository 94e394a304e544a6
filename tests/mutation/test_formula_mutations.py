"""Defects in forms that no golden covers: the tests of their formulas must notice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests import test_method_formulas
from tests.mutation.test_method_mutations import Defect, cls, plus_is_plain
from tests.mutation.tools import Defects, assert_noticed
from vtprune.methods import holov, ops


def paper_form_is_attention(put: Defects) -> None:
    put.swap(holov, "holistic_score", lambda inner: lambda x, attention, sizes: attention)


def similarities_for_their_variance(put: Defects) -> None:
    def mean(x: torch.Tensor, attention: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        parts = [ops.cosine_graph(tokens).mean(dim=1) for tokens in x.split(sizes)]
        return torch.cat(parts) + attention

    put.swap(holov, "holistic_score", lambda inner: mean)


def another_share(put: Defects) -> None:
    def other(inner):
        return lambda self, view, k: inner(self.replace(dominant_share=0.8), view, k)

    put.swap(cls("visionzip"), "select", other)


PAPER_FORM = (
    test_method_formulas.test_the_paper_form_of_holov_adds_how_similarities_vary_to_attention
)
FORMULAS: list[tuple[Defect, Callable[[], None]]] = [
    (
        paper_form_is_attention,
        lambda: PAPER_FORM(1.0),
    ),
    (
        similarities_for_their_variance,
        lambda: PAPER_FORM(1.0),
    ),
    (
        plus_is_plain,
        lambda: test_method_formulas.test_prumerge_plus_spreads_what_attention_leaves(0.25),
    ),
    (another_share, test_method_formulas.test_visionzip_divides_64_tokens_as_published),
]


@pytest.mark.parametrize(("defect", "check"), FORMULAS, ids=[d.__name__ for d, _ in FORMULAS])
def test_formulas_notice(
    defect: Defect, check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_noticed(monkeypatch, defect, check)
