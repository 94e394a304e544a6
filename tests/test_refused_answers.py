"""What a method may not answer, or be given, is one line: its name, what was asked, what came."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from tests import tiny
from tests.golden_tools import packed_image
from vtprune.methods import LayerMethod, LayerSignals, MethodError, Selection, TokenMethod
from vtprune.models import prune

N, K = 16, 4


@dataclass(frozen=True, kw_only=True)
class Answering(TokenMethod):
    """Gives the answer it was made with, as a score or as a selection."""

    answer: object = None
    name = "mine"

    def select(self, view, k):
        return self.answer


@dataclass(frozen=True, kw_only=True)
class Scoring(TokenMethod):
    answer: object = None
    name = "mine"

    def score(self, view):
        return self.answer


@dataclass(frozen=True, kw_only=True)
class AnsweringInside(LayerMethod):
    answer: object = None
    name = "mine"

    def select(self, signals, k):
        return self.answer


@dataclass(frozen=True, kw_only=True)
class ScoringInside(LayerMethod):
    answer: object = None
    name = "mine"

    def score(self, signals):
        return self.answer


def kept(cls, answer):
    """What stays of 16 tokens of which 4 are asked for."""
    if issubclass(cls, TokenMethod):
        image = packed_image(torch.ones(N, 3), base=(4, 4))
        return cls(ratio=1 - K / N, answer=answer).keep(image)
    signals = LayerSignals(1, 8, torch.arange(N), N, lambda name: torch.ones(N))
    return cls(ratio=0.5, answer=answer).checked_select(signals, K)


def put(value: float, *places: int) -> torch.Tensor:
    score = torch.arange(float(N))
    score[list(places)] = value
    return score


def refused(cls, answer) -> str:
    with pytest.raises(MethodError) as error:
        kept(cls, answer)
    line = str(error.value)
    assert line.startswith("mine: ") and "\n" not in line
    return line.removeprefix("mine: ")


SCORES = {
    "too short": (torch.ones(N - 1), "score must be [16], one number a token, got float32 [15]"),
    "one a head": (torch.ones(2, N), "score must be [16], one number a token, got float32 [2, 16]"),
    "a column": (torch.ones(N, 1), "score must be [16], one number a token, got float32 [16, 1]"),
    "one number": (torch.tensor(1.0), "score must be [16], one number a token, got float32 []"),
    "a list": ([1.0] * N, "score must be [16], one number a token, got a list"),
    "nothing": (None, "score must be [16], one number a token, got a NoneType"),
    "NaN": (put(torch.nan, 3), "score must be finite, got 1 NaN and 0 infinite of 16"),
    "infinite": (put(torch.inf, 2, 5), "score must be finite, got 0 NaN and 2 infinite of 16"),
    "minus infinity": (put(-torch.inf, 7), "score must be finite, got 0 NaN and 1 infinite of 16"),
}


@pytest.mark.parametrize("case", SCORES)
@pytest.mark.parametrize("cls", [Scoring, ScoringInside])
def test_a_score_that_ranks_nothing_is_refused(cls, case):
    answer, line = SCORES[case]
    assert refused(cls, answer) == line


def mask(count: int, n: int = N) -> torch.Tensor:
    return torch.arange(n) < count


ASKED = "asked for 4 of 16 tokens, "
PICKS = {
    "too few": (torch.arange(3), ASKED + "got int64 [3] instead of 4 whole indices"),
    "too many": (torch.arange(5), ASKED + "got int64 [5] instead of 4 whole indices"),
    "float": (torch.arange(4.0), ASKED + "got float32 [4] instead of 4 whole indices"),
    "rows": (torch.arange(4)[None], ASKED + "got int64 [1, 4] instead of 4 whole indices"),
    "a list": ([0, 1, 2, 3], ASKED + "got a list instead of 4 whole indices"),
    "nothing": (None, ASKED + "got a NoneType instead of 4 whole indices"),
    "negative": (torch.tensor([0, 1, -1, 3]), "indices must lie in 0..15, got -1"),
    "beyond": (torch.tensor([0, 1, 2, 16]), "indices must lie in 0..15, got 16"),
    "twice": (torch.tensor([5, 1, 2, 5]), ASKED + "got 4 (3 distinct)"),
    "small mask": (mask(3), ASKED + "the mask has 3"),
    "large mask": (mask(5), ASKED + "the mask has 5"),
    "short mask": (mask(4, 15), ASKED + "got bool [15] instead of 4 whole indices"),
    "features": (
        Selection(torch.arange(4), torch.ones(3, 3)),
        "features must be [4, d], one row a kept token, got float32 [3, 3]",
    ),
    "flat features": (
        Selection(torch.arange(4), torch.ones(4)),
        "features must be [4, d], one row a kept token, got float32 [4]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PICKS)
@pytest.mark.parametrize("cls", [Answering, AnsweringInside])
def test_what_is_no_selection_is_refused(cls, case):
    answer, line = PICKS[case]
    assert refused(cls, answer) == line


@pytest.mark.parametrize("cls", [Answering, AnsweringInside])
def test_a_mask_of_the_right_count_selects_its_tokens(cls):
    marked = torch.zeros(N, dtype=torch.bool)
    marked[[2, 3, 11, 15]] = True
    assert kept(cls, marked).indices.tolist() == [2, 3, 11, 15]


@pytest.mark.parametrize("cls", [Answering, AnsweringInside])
def test_features_of_a_mask_are_in_the_order_of_its_places(cls):
    marked = torch.zeros(N, dtype=torch.bool)
    marked[[2, 3, 11, 15]] = True
    rows = torch.arange(12.0).reshape(4, 3)
    assert torch.equal(kept(cls, Selection(marked, rows)).features, rows)


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8])
def test_indices_of_any_whole_type_are_taken(kind):
    assert kept(Answering, torch.tensor([9, 0, 4, 2], dtype=kind)).indices.tolist() == [0, 2, 4, 9]


def test_every_view_is_looked_at_and_views_without_an_answer_are_refused():
    image = packed_image(torch.ones(16 + 20, 3), base=(4, 4), canvas=(4, 4))
    good = torch.arange(4)
    for answers, line in (
        ([good, torch.tensor([0, 1, 2, 2])], ASKED + "got 4 (3 distinct)"),
        ([good], "2 views, but 1 selections"),
    ):
        class TwoViews(Answering):
            def select_all(self, views, counts, answers=answers):
                return answers

        with pytest.raises(MethodError) as error:
            TwoViews(ratio=0.75).keep(image)
        assert str(error.value) == f"mine: {line}"


# --- signals of the wrong length ----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Reading(TokenMethod):
    needs = ("received_attention",)
    name = "mine"

    def score(self, view):
        return view.signal("received_attention").reshape(-1)[: len(view)]


@pytest.mark.parametrize(
    ("shape", "line"),
    [
        ((1, 32), "must have 16 entries in dimension 1, got shape [1, 32]"),
        ((2, 16), "must have 1 entries in dimension 0, got shape [2, 16]"),
        ((1, 15), "must have 16 entries in dimension 1, got shape [1, 15]"),
        ((16,), "must have 1 entries in dimension 0, got shape [16]"),
    ],
)
@pytest.mark.parametrize("scope", ["per_view", "joint", "per_tile"])
def test_a_signal_of_another_length_is_refused_not_folded(scope, shape, line):
    image = packed_image(torch.ones(N, 3), base=(4, 4), received_attention=torch.rand(shape))
    with pytest.raises(MethodError) as error:
        Reading(ratio=0.75, scope=scope).keep(image)
    assert str(error.value) == f"mine: signal 'received_attention' {line}"


@pytest.mark.parametrize(
    ("signal", "shape", "dimension"),
    [("last_row", (4, 17), -1), ("text_rows", (4, 3, 8), -1), ("cross", (32,), 0),
     ("hidden", (8, 2), 0), ("keys", (15, 2, 4), 0)],
)  # fmt: skip
def test_a_signal_inside_the_model_of_another_length_is_refused(signal, shape, dimension):
    class Inside(LayerMethod):
        needs = (signal,)
        name = "mine"

        def score(self, signals):
            return signals.signal(signal).reshape(-1)[:N]

    signals = LayerSignals(1, 8, torch.arange(N), N, lambda name: torch.rand(shape))
    with pytest.raises(MethodError) as error:
        Inside(ratio=0.5).checked_select(signals, K)
    assert str(error.value) == (
        f"mine: signal '{signal}' must have 16 entries in dimension {dimension}, got shape "
        f"{list(shape)}"
    )


# --- in a run, in half precision ----------------------------------------------------------------


def test_a_run_ends_with_the_line_of_the_method():
    model, feed = tiny.model("llava", "sdpa"), tiny.inputs("llava", [tiny.prompt("llava", 0)])
    with pytest.raises(MethodError, match=r"^mine: score must be finite, got 64 NaN"):
        with prune(model, Scoring(ratio=0.5, answer=torch.full((64,), torch.nan))):
            model(**feed)
