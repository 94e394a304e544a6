"""Every benchmark through lmms-eval: both ends of its scale, and the traps on the way."""

from __future__ import annotations

import os
import socket

import pytest

from tests import bench_tools as tools
from tests.engine_tools import Scripted
from vtprune.harness.request.errors import ConfigError, HarnessError

SCHEMA = {
    "doc_id", "sample_id", "question_id", "image_id", "prompt", "answer", "reference", "score",
    "error", "prompt_tokens", "generated_tokens", "latency_s",
}  # fmt: skip
MINI_MAXIMUM = {"mme": 800}  # four of the ten categories


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No benchmark may reach for a judge or a hub, not even if it then carries on without."""
    looked_up = []

    def refuse(*arguments, **options):
        looked_up.append(arguments[:2])
        raise OSError(f"network access: {arguments[:2]}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert looked_up == []


@pytest.mark.parametrize("name", tools.BENCHES)
def test_oracle_reaches_the_maximum_and_a_constant_answer_the_floor(name, tmp_path):
    bench = tools.config(name)
    full = tools.run(tmp_path / "oracle", name, tools.oracle(name))
    none = tools.run(tmp_path / "constant", name, tools.constant())
    maximum = MINI_MAXIMUM.get(name, bench["maximum"])
    assert full.metrics[bench["metric"]] * bench["scale"] == pytest.approx(maximum)
    assert none.metrics[bench["metric"]] == 0
    one = 1 if bench["unit"] == "points" else 100
    assert [s["score"] for s in full.samples] == [one] * len(full.samples)
    assert {s["score"] for s in none.samples} == {0.0}
    assert all(SCHEMA <= set(s) and s["reference"] for s in full.samples)
    stated = {bench["metric"], *bench["others"]}
    absent = {"seed_video", "mme_cognition_score"}  # of rows that the eight do not contain
    assert stated - absent <= set(full.metrics)


def test_all_benchmarks_state_the_same_things():
    first = set(tools.config("gqa"))
    for name in tools.BENCHES:
        bench = tools.config(name)
        assert set(bench) - {"judge_replaces"} == first, name
        assert bench["judge"] in (None, "rule") and bench["samples"] > 0 and bench["prompt"]


def test_judge_and_prompt_options_belong_to_the_cell():
    from vtprune.harness.request.benches import scoring

    assert scoring(tools.config("textvqa"), "lmms_eval") == {}
    with_hints = scoring(tools.config("textvqa_ocr"), "lmms_eval")
    assert with_hints == {"prompt_options": {"ocr": True}}
    assert scoring(tools.config("mmvet"), "lmms_eval") == {
        "judge": "rule", "rule_judge": "wanted_words"
    }  # fmt: skip


def test_the_commit_of_an_image_table_is_checked_too():
    from types import SimpleNamespace

    from vtprune.harness.evaluation.data import redirect

    file = {"filename": f"/cache/org___data/images/0.0.0/{'b' * 40}/data-test.arrow"}
    with pytest.raises(HarnessError, match="newest copy in the cache is bbbbbbbb"):
        redirect._check_revision(SimpleNamespace(cache_files=[file]), "org/data", "a" * 40)


def test_an_odd_limit_is_completed_to_whole_pairs(tmp_path):
    outcome = tools.run(tmp_path, "mme", tools.oracle("mme"), limit=3)
    assert [s["doc_id"] for s in outcome.samples] == [0, 1, 2, 3]
    assert outcome.metrics["mme_perception_score"] == 400
    with pytest.raises(ConfigError, match="row 3 is missing"):
        tools.run(tmp_path / "half", "mme", tools.oracle("mme"), indices=[2])


def test_a_pair_with_a_failed_half_is_left_out_whole(tmp_path):
    right = tools.oracle("mme").answer_to

    def answer(question):
        if question.doc_id == 2:
            raise ValueError("broken")
        return right(question)

    outcome = tools.run(tmp_path, "mme", Scripted(answer))
    assert [s["doc_id"] for s in outcome.samples if s["score"] is None] == [2, 3]
    assert [s["doc_id"] for s in outcome.samples if s["error"]] == [2]
    assert outcome.metrics["mme_perception_score"] == 600, "the other three pairs are right"
    assert outcome.samples[2]["reference"] == "Yes"


def test_mme_sums_perception_and_cognition(tmp_path):
    outcome = tools.run(tmp_path, "mme", tools.oracle("mme", 10), samples=10)
    assert outcome.metrics["mme_cognition_score"] == 200
    assert outcome.metrics["mme_total_score"] == 1000
    assert [s["score"] for s in outcome.samples] == [1.0] * 10


@pytest.mark.parametrize("name", ["mmbench_en", "mmbench_cn"])
def test_mmbench_never_asks_a_judge_and_survives_control_characters(name, tmp_path, monkeypatch):
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

    judged = []

    def judge(*arguments, **options):
        judged.append(arguments)
        return "Failed to obtain answer via API"

    # Without a network it would wait 45 s for an answer and then draw a letter.
    monkeypatch.setattr(MMBench_Evaluator, "get_chat_response", judge)
    right = tools.oracle(name).answer_to
    said = [
        lambda letter: f"\x07{letter}\x0b",
        lambda letter: "none of them fits, i would say",
        lambda letter: f"({letter})",
        lambda letter: f"The answer is {letter}.",
    ]
    answerer = Scripted(lambda question: said[question.doc_id % 4](right(question)))
    outcome = tools.run(tmp_path, name, answerer)
    assert judged == []
    assert [s["score"] for s in outcome.samples] == [100, 0, 100, 100] * 2
    assert outcome.metrics["gpt_eval_score"] == 75
    assert outcome.samples[0]["answer"] == right(answerer.asked[0])


def test_rows_without_an_image_are_asked_as_text(tmp_path):
    answerer = tools.oracle("scienceqa_full")
    outcome = tools.run(tmp_path, "scienceqa_full", answerer)
    counts = [len(question.images()) for question in answerer.asked]
    assert counts == [1] * 8 + [0] * 4
    assert [s["score"] for s in outcome.samples] == [100] * 12


def test_gqa_joins_each_question_with_its_image(tmp_path, monkeypatch):
    import datasets

    def refuse(*arguments, **options):
        raise AssertionError("the image table was copied into the question rows")

    monkeypatch.setattr(datasets.Dataset, "map", refuse)
    answerer = tools.oracle("gqa")
    outcome = tools.run(tmp_path, "gqa", answerer, indices=[5, 0])
    images = {row["id"]: row["image"] for row in _gqa_images()}
    asked = {question.doc_id: question for question in answerer.asked}
    for sample in outcome.samples:
        shown = asked[sample["doc_id"]].images()[0]
        assert shown.tobytes() == _decoded(images[sample["image_id"]]).tobytes()
    assert outcome.metrics["exact_match"] == 1.0


def _gqa_images():
    from vtprune.harness.evaluation.data import mini

    return mini.tables("gqa", 0, 8)[1].rows


def _decoded(image):
    import io

    from PIL import Image

    return Image.open(io.BytesIO(image["bytes"])).convert("RGB")


def test_ocrbench_does_not_add_up_over_runs(tmp_path):
    for turn in "ab":
        outcome = tools.run(tmp_path / turn, "ocrbench", tools.oracle("ocrbench"))
        assert outcome.metrics["ocrbench_points"] == 1000
        assert outcome.metrics["ocrbench_accuracy"] == 8 / 1000


def test_mmvet_leaves_the_environment_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("API_TYPE", "openai")
    tools.run(tmp_path, "mmvet", tools.oracle("mmvet"), samples=2)
    assert os.environ["API_TYPE"] == "openai"


def test_popes_yes_ratio_counts_the_answers(tmp_path):
    outcome = tools.run(tmp_path, "pope", tools.constant("yes"))
    assert outcome.metrics["yes_ratio"] == 1.0
    assert outcome.metrics["pope_yes_ratio"] == 0.5, "the task's own counts the references"


def test_ocr_tokens_are_in_the_prompt_only_where_asked_for(tmp_path):
    with_hints, without = tools.oracle("textvqa"), tools.oracle("textvqa")
    tools.run(tmp_path / "with", "textvqa_ocr", with_hints)
    tools.run(tmp_path / "without", "textvqa", without)
    assert all("\nReference OCR token: " in q.prompt for q in with_hints.asked)
    assert not any("OCR" in q.prompt for q in without.asked)


@pytest.mark.parametrize(
    ("name", "form", "score"),
    [
        ("pope", "{}.", 0), ("mme", "{}.", 1), ("mme", "{}, it is", 1),
        ("seedbench", "({})", 0), ("seedbench", "{}. red", 100),
        ("scienceqa", "{}.", 100), ("scienceqa", "({})", 0),
        ("gqa", "{}.", 100), ("vqav2", "{}.", 100), ("vizwiz", "{}.", 100),
        ("textvqa", "{}.", 100), ("chartqa", "{}.", None),
    ],
)  # fmt: skip
def test_what_each_scorer_forgives(name, form, score, tmp_path):
    right = tools.oracle(name).answer_to
    answerer = Scripted(lambda question: form.format(right(question)))
    outcome = tools.run(tmp_path, name, answerer)
    if score is None:  # a full stop does not harm a number
        score = [100 if s["reference"].isdigit() else 0 for s in outcome.samples]
        assert [s["score"] for s in outcome.samples] == score and set(score) == {0, 100}
    else:
        assert {s["score"] for s in outcome.samples} == {score}


def test_an_answer_without_a_letter_is_wrong_in_mmmu_and_never_guessed(tmp_path):
    import random

    state = random.getstate()
    outcome = tools.run(tmp_path, "mmmu", Scripted(lambda question: "none of these"))
    assert {s["score"] for s in outcome.samples} == {0.0}
    assert outcome.metrics["mmmu_acc"] == 0
    assert random.getstate() == state


def test_hallusion_bench_counts_questions_and_whole_figures_by_the_first_word(tmp_path):
    right = tools.oracle("hallusion_bench").answer_to
    said = {0: "Yes, it is.", 1: "yes", 2: "It is yes", 3: "no."}  # right, wrong, no word, right

    def answer(question):
        return said.get(question.doc_id) or right(question)

    outcome = tools.run(tmp_path, "hallusion_bench", Scripted(answer))
    assert [s["score"] for s in outcome.samples] == [100, 0, 0, 100, 100, 100, 100, 100]
    assert outcome.metrics["aAcc"] == outcome.metrics["qAcc"] == 75
    assert outcome.metrics["fAcc"] == 50
