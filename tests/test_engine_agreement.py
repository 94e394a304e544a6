"""The same answers, two engines: bare answers score alike everywhere, and where forms part ways."""

from __future__ import annotations

import importlib.util

import pytest

from tests import bench_tools as tools
from vtprune.harness.evaluation import agreement
from vtprune.harness.evaluation.data import tables

if importlib.util.find_spec("vlmeval") is None:
    pytest.skip("ms-vlmeval is not installed: make demo installs it", allow_module_level=True)

SHARED = [n for n in tools.BENCHES if set(agreement.ENGINES) <= set(tools.config(n)["engines"])]


def test_both_engines_have_the_benchmarks_of_the_papers():
    wanted = {"gqa", "mme", "pope", "mmbench_en", "chartqa", "docvqa", "textvqa", "scienceqa"}
    assert wanted <= set(SHARED)


@pytest.mark.parametrize("name", SHARED)
def test_bare_answers_score_the_same(name):
    made = agreement.compare(tools.config(name), "bare", samples=12)
    assert made.difference == pytest.approx(0, abs=1e-6)
    assert 0 < made.scores["lmms_eval"] < tools.config(name)["maximum"]


@pytest.mark.parametrize(
    ("name", "form", "lmms_eval", "vlmevalkit"),
    [
        ("pope", "full stop", False, True),
        ("gqa", "full stop", True, False),
        ("scienceqa", "lower case", True, False),
        ("scienceqa", "sentence", False, True),
    ],
)
def test_known_differences_of_the_scorers(name, form, lmms_eval, vlmevalkit):
    made = agreement.compare(tools.config(name), form, samples=12)
    got = {engine: score > 0 for engine, score in made.scores.items()}
    assert got == {"lmms_eval": lmms_eval, "vlmevalkit": vlmevalkit}


@pytest.mark.parametrize(
    ("text", "turn", "said"),
    [
        ("A", 1, "C"),
        ("b.", 1, "a."),
        ("The answer is C.", 2, "The answer is A."),
        ("red", 1, "red"),
    ],
)
def test_a_turned_question_gets_the_letter_of_the_same_option(text, turn, said):
    assert agreement._turned([text], tables.Origin(0, turn, 3)) == said
