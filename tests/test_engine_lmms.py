"""The lmms-eval engine, driven by oracles: scores, failures, resume, and its known traps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests import bench_tools
from tests import engine_tools as tools
from vtprune import places
from vtprune.harness.evaluation.engines.asking import batches, clean
from vtprune.harness.evaluation.engines.base import Question
from vtprune.harness.request.errors import ConfigError, HarnessError
from vtprune.harness.store.journal import Journal


@pytest.fixture(scope="module")
def engine():
    from vtprune.harness.evaluation.engines.lmms_eval import LmmsEval

    return LmmsEval()


@pytest.fixture
def run(engine, tmp_path):
    """Runs mini TextVQA with an answerer made from the rows."""

    def go(make, folder=tmp_path, **options):
        folder.mkdir(exist_ok=True)
        with Journal(folder / "samples.jsonl") as journal:
            job = tools.job(folder, journal, **options)
            answerer = make(tools.references(folder))
            return engine.run(job, answerer), answerer

    return go


def constant(rows):
    return tools.Scripted(lambda question: "xyzzy")


def test_the_oracle_scores_full_and_a_constant_answer_nothing(run, tmp_path):
    full, _ = run(tools.oracle, tmp_path / "oracle")
    none, _ = run(constant, tmp_path / "constant")
    assert full.metrics["exact_match"] == 1.0
    assert none.metrics["exact_match"] == 0.0
    assert [s["score"] for s in full.samples] == [100.0] * 12


def test_the_prompt_is_the_tasks_own_and_the_records_are_complete(run):
    outcome, answerer = run(tools.oracle)
    suffix = "\nAnswer the question using a single word or phrase."
    assert all(question.prompt.endswith(suffix) for question in answerer.asked)
    assert all(question.until == ("ASSISTANT:",) for question in answerer.asked)
    assert answerer.asked[0].images()[0].mode == "RGB"
    sample = outcome.samples[3]
    assert sample["doc_id"] == 3 and sample["sample_id"] == "textvqa_val:3"
    assert sample["question_id"] is not None and sample["image_id"]
    assert len(sample["reference"]) == 10 and sample["error"] is None


def test_the_same_engine_runs_twice(run, tmp_path):
    first, _ = run(tools.oracle, tmp_path / "first")
    second, _ = run(tools.oracle, tmp_path / "second")
    assert first.metrics == second.metrics


def test_an_adapter_survives_the_evaluators_cleaning(engine, tmp_path):
    import torch

    from vtprune.harness.evaluation.engines.lmms_eval import Adapter

    with Journal(tmp_path / "samples.jsonl") as journal:
        adapter = Adapter(tools.job(tmp_path, journal), constant([]), None, [])
    adapter.module = torch.nn.Linear(1, 1)
    adapter.clean()
    assert isinstance(adapter.module, torch.nn.Linear)


def test_a_failing_sample_is_not_an_empty_answer(run):
    def fails_on_two(rows):
        def answer(question):
            if question.doc_id in (2, 7):
                raise ValueError("broken image\nsecond line")
            return rows[question.doc_id]["answers"][0]

        return tools.Scripted(answer)

    outcome, answerer = run(fails_on_two)
    failed = [s for s in outcome.samples if s["error"]]
    assert [s["doc_id"] for s in failed] == [2, 7]
    assert all(s["answer"] is None and s["score"] is None for s in failed)
    assert failed[0]["error"] == "ValueError: broken image"
    assert outcome.metrics["exact_match"] == 1.0, "the ten answered ones are all right"
    neighbours = [q.doc_id for q in answerer.asked if q.doc_id in (0, 1, 3)]
    assert sorted(set(neighbours)) == [0, 1, 3]


def test_an_image_that_cannot_be_decoded_fails_its_sample_alone(engine, tmp_path):
    """Bytes of one picture are damaged in the data itself; the others are answered and scored."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    class Looking(tools.Scripted):
        def answer(self, batch):
            for question in batch:
                assert question.images()
            return super().answer(batch)

    with Journal(tmp_path / "samples.jsonl") as journal:
        job = tools.job(tmp_path, journal)
        (file,) = job.data.root.rglob("validation-*.parquet")
        table = pq.read_table(file)
        images = table["image"].to_pylist()
        images[3]["bytes"] = b"\x89PNG and then nothing of a picture"
        column = pa.array(images, type=table.schema.field("image").type)
        place = table.schema.get_field_index("image")
        pq.write_table(table.set_column(place, table.schema.field("image"), column), file)
        rows = tools.references(job.data.root)
        outcome = engine.run(job, Looking(lambda q: rows[q.doc_id]["answers"][0]))
    failed = [s for s in outcome.samples if s["error"]]
    assert [s["doc_id"] for s in failed] == [3]
    assert "identify image" in failed[0]["error"]
    assert outcome.metrics["exact_match"] == 1.0


def test_a_cell_in_which_everything_fails_stops_early_and_says_why(run):
    def hopeless(rows):
        return tools.Scripted(lambda question: 1 / 0)

    with pytest.raises(HarnessError, match=r"first 8 samples all failed.*division by zero"):
        run(hopeless, samples=40)


def test_interrupts_are_not_failed_samples(run, tmp_path):
    def interrupted(rows):
        def answer(question):
            raise KeyboardInterrupt

        return tools.Scripted(answer)

    with pytest.raises(KeyboardInterrupt):
        run(interrupted)
    assert tools.entries(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from vtprune.harness.evaluation.engines.lmms_eval import LmmsEval
from vtprune.harness.store.journal import Journal
from tests import bench_tools
from tests import engine_tools as tools

folder = Path(sys.argv[1])
with Journal(folder / "samples.jsonl") as journal:
    job = tools.job(folder, journal, batch_size=1)
    rows = tools.references(folder)
    def answer(question):
        if question.doc_id == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return rows[question.doc_id]["answers"][0]
    LmmsEval().run(job, tools.Scripted(answer))
"""


@pytest.mark.slow
def test_after_kill_9_only_the_rest_is_asked(run, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(tools.ROOT)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment)
    assert done.returncode == -signal.SIGKILL
    assert [e["doc_id"] for e in tools.entries(tmp_path)] == [0, 1, 2, 3, 4]
    with (tmp_path / "samples.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"doc_id": 5, "answer": "hal')  # what a kill in the middle of a write leaves
    outcome, answerer = run(tools.oracle, batch_size=1)
    assert [q.doc_id for q in answerer.asked] == [5, 6, 7, 8, 9, 10, 11]
    assert outcome.metrics["exact_match"] == 1.0
    assert [e["doc_id"] for e in tools.entries(tmp_path)] == list(range(12))


def test_limit_and_indices_choose_rows_of_the_full_split(run, tmp_path):
    limited, _ = run(tools.oracle, tmp_path / "limit", limit=3)
    chosen, _ = run(tools.oracle, tmp_path / "indices", indices=[9, 4])
    assert [s["doc_id"] for s in limited.samples] == [0, 1, 2]
    assert [s["doc_id"] for s in chosen.samples] == [9, 4]
    assert chosen.metrics["exact_match"] == 1.0, "answers are matched to the right documents"
    with pytest.raises(ConfigError, match="outside the 12 samples"):
        run(tools.oracle, tmp_path / "outside", indices=[12])


def test_random_states_are_left_alone(run):
    import random

    import numpy as np
    import torch

    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = (random.random(), np.random.rand(), torch.rand(1).item())
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    run(tools.oracle)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_rewritten_data_is_not_served_from_a_stale_cache(engine, tmp_path):
    seen = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        with Journal(folder / "samples.jsonl") as journal:
            job = tools.job(folder, journal, cache=tmp_path / "cache", seed=seed)
            engine.run(job, constant([]))
        seen.append([s["prompt"] for s in tools.entries(folder)])
    assert seen[0] != seen[1]


def test_the_redirect_ends_with_the_call(run):
    import datasets

    before = datasets.load_dataset
    run(tools.oracle)
    assert datasets.load_dataset is before


def test_the_bench_file_names_the_tasks_own_data(engine):
    from vtprune.harness.evaluation.engines.lmms_data import importable_without_key, task_manager
    from vtprune.harness.request.request import Task

    for name in bench_tools.BENCHES:
        entry = tools.bench_config(name)["engines"]["lmms_eval"]
        with importable_without_key():
            config = task_manager(Task.of(entry))._get_config(entry["task"])
        assert config["dataset_path"] == entry["dataset"]
        assert config.get("dataset_name") == entry["config"]
        assert config["test_split"] == entry["split"]


def test_answers_are_cut_and_cleaned():
    assert clean(" red\x00 sign\nASSISTANT: more", ["ASSISTANT:"]) == "red sign"
    assert clean("tab\tand\nline stay") == "tab\tand\nline stay"


def test_batches_never_mix_length_limits_or_stop_strings():
    def ask(number, limit):
        return Question(number, str(number), "?", list, max_new_tokens=limit)

    made = batches([ask(0, 16), ask(1, None), ask(2, 16), ask(3, 16)], 2)
    assert [[q.doc_id for q in batch] for batch in made] == [[0, 2], [3], [1]]


@pytest.mark.slow
def test_the_engine_comes_without_what_it_never_uses():
    """And the pipelines of transformers are there for whoever asks afterwards."""
    code = (
        "import sys, vtprune.harness.evaluation.engines.lmms_eval\n"
        "assert 'transformers.pipelines' not in sys.modules\n"
        "assert 'torch._dynamo' not in sys.modules, 'the compiler takes two seconds'\n"
        "from transformers import pipeline\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=places.ROOT, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
