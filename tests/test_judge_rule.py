"""The rule that stands in for MM-Vet's judge."""

from __future__ import annotations

import pytest

from vtprune.harness.evaluation.engines.judge_rule import wanted_words


@pytest.mark.parametrize(
    ("truth", "answer", "score"),
    [
        ("-1<AND>-5", "x = -1 or x = -5", 1.0),
        ("-1<AND>-5", "x = -5", 0.5),
        ("-1 <AND> -5", "x = 3", 0.0),
        ("Taj Mahal<OR>a tomb", "This is the TAJ MAHAL, in India.", 1.0),
        ("red", "it is red", 1.0),
        ("red", "incredible", 0.0),
        ("3.5", "about 3.5 kg", 1.0),
        ("3.5", "35", 0.0),
        ("a<AND>b<AND>c", "a and b", 0.7),
        ("a<AND>b<OR>c", "c", 1.0),
        ("red", "", 0.0),
    ],
)
def test_wanted_words(truth, answer, score):
    assert wanted_words(truth, answer) == score
