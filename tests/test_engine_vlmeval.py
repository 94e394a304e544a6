"""The VLMEvalKit engine: both ends of every scale, and each of the library's traps."""

from __future__ import annotations

import ast
import csv
import importlib.util
import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from tests import bench_tools as tools
from tests.engine_tools import ROOT, Scripted
from tests.test_bench_lmms import MINI_MAXIMUM, SCHEMA
from vtprune.harness.request.errors import ConfigError, HarnessError
from vtprune.harness.request.request import Bench, Data, Task

# Not importorskip: that would import it without what the engine does around the import.
if importlib.util.find_spec("vlmeval") is None:
    pytest.skip("ms-vlmeval is not installed: make demo installs it", allow_module_level=True)

ENGINE = "vlmevalkit"
BENCHES = [name for name in tools.BENCHES if ENGINE in tools.config(name)["engines"]]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Neither a download nor a judge, not even one whose absence is passed over."""
    looked_up = []

    def refuse(*arguments, **options):
        looked_up.append(arguments[:2])
        raise OSError(f"network access: {arguments[:2]}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert looked_up == []


def entry(name):
    return tools.config(name)["engines"][ENGINE]


def oracle(name, folder, samples=8):
    """Gives the table's own answer."""
    from vtprune.harness.evaluation.data import tables

    csv.field_size_limit(2**30)
    file = tables.build(tools.config(name)["mini"], entry(name)["table"], folder, 0, samples)
    with file.open(newline="", encoding="utf-8") as stream:
        answers = [row["answer"] for row in csv.DictReader(stream, delimiter="\t")]
    first = [ast.literal_eval(a)[0] if a.startswith("[") else a for a in answers]
    return Scripted(lambda question: first[question.doc_id])


def run(folder, name, answerer, **options):
    return tools.run(folder, name, answerer, engine=ENGINE, **options)


@pytest.mark.parametrize("name", BENCHES)
def test_oracle_reaches_the_maximum_and_a_constant_answer_the_floor(name, tmp_path):
    from vtprune.harness.request.benches import for_engine

    bench = for_engine(tools.config(name), {"name": ENGINE})
    full = run(tmp_path / "oracle", name, oracle(name, tmp_path / "table"))
    none = run(tmp_path / "constant", name, tools.constant())
    maximum = MINI_MAXIMUM.get(name, bench["maximum"])
    assert full.metrics[bench["metric"]] * bench["scale"] == pytest.approx(maximum)
    assert none.metrics[bench["metric"]] == 0
    one = 1 if bench["unit"] == "points" else 100
    assert {s["score"] for s in full.samples} == {one}
    assert {s["score"] for s in none.samples} == {0}
    assert set(bench["others"]) <= set(full.metrics)


def test_both_engines_write_the_same_record(tmp_path):
    one = tools.run(tmp_path / "one", "pope", tools.oracle("pope"))
    two = run(tmp_path / "two", "pope", oracle("pope", tmp_path / "table"))
    assert set(one.samples[0]) == set(two.samples[0]) >= SCHEMA
    assert [s["doc_id"] for s in one.samples] == [s["doc_id"] for s in two.samples]


def test_evaluation_files_of_other_answers_are_not_reused(tmp_path):
    for name in ("pope", "mmbench_en", "vizwiz"):
        right, folder = oracle(name, tmp_path / "table"), tmp_path / name
        assert {s["score"] for s in run(folder, name, right).samples} == {100}
        (folder / "samples.jsonl").unlink()
        assert {s["score"] for s in run(folder, name, tools.constant()).samples} == {0}


def test_a_failed_row_takes_its_group_out_and_is_no_answer(tmp_path):
    right = oracle("mmbench_en", tmp_path / "table").answer_to

    def answer(question):
        if question.doc_id == 1:
            raise ValueError("broken picture")
        return right(question)

    outcome = run(tmp_path / "run", "mmbench_en", Scripted(answer))
    assert [s["doc_id"] for s in outcome.samples if s["error"]] == [1]
    assert outcome.samples[1]["answer"] is None
    unscored = [s["doc_id"] for s in outcome.samples if s["score"] is None]
    assert unscored == [0, 1, 2, 3], "the question in all its rotations"
    assert outcome.metrics["Overall"] == 1.0


def test_a_question_counts_only_if_every_rotation_is_right(tmp_path):
    right = oracle("mmbench_en", tmp_path / "table").answer_to
    outcome = run(
        tmp_path / "run", "mmbench_en",
        Scripted(lambda q: right(q) if q.doc_id != 2 else "no idea at all"),
    )  # fmt: skip
    assert [s["score"] for s in outcome.samples[:5]] == [0, 0, 0, 0, 100]
    assert outcome.metrics["Overall"] == 7 / 8


def test_limits_take_whole_questions_and_whole_pairs(tmp_path):
    outcome = run(tmp_path / "a", "mmbench_en", oracle("mmbench_en", tmp_path / "t"), limit=2)
    assert [s["question_id"] for s in outcome.samples] == [
        "1", "1000001", "2000001", "3000001", "2", "1000002", "2000002",
    ]  # fmt: skip
    outcome = run(tmp_path / "b", "mme", oracle("mme", tmp_path / "t"), limit=3)
    assert len(outcome.samples) == 4 and outcome.metrics["perception"] == 400
    with pytest.raises(ConfigError, match="row 3 is missing"):
        run(tmp_path / "c", "mme", oracle("mme", tmp_path / "t"), indices=[2])


LONG = "=1+1 " + "word " * 8000


def test_long_answers_and_formulas_reach_the_scorer_whole(tmp_path):
    answerer = Scripted(lambda q: LONG + "1507" if q.doc_id == 0 else 'x\ty\n"z"')
    outcome = run(tmp_path, "ocrbench", answerer)
    assert len(outcome.samples[0]["answer"]) > 32767
    (file,) = tmp_path.rglob("model_OCRBench.tsv")
    csv.field_size_limit(2**30)
    with file.open(newline="", encoding="utf-8") as stream:
        said = [row["prediction"] for row in csv.DictReader(stream, delimiter="\t")]
    assert said[0] == (LONG + "1507").strip() and said[1] == 'x\ty\n"z"'


def test_answers_that_look_like_numbers_stay_text(tmp_path):
    answerer = oracle("ocrbench", tmp_path / "t")
    said = {0: "0042", 1: "3.50"}
    outcome = run(tmp_path / "run", "ocrbench", Scripted(lambda q: said[q.doc_id]), indices=[0, 1])
    assert answerer.asked == [] and [s["score"] for s in outcome.samples] == [0, 0]
    from vtprune.harness.evaluation.engines import vlm_import

    (file,) = (tmp_path / "run").rglob("model_OCRBench.tsv")
    with vlm_import.surroundings(tmp_path):
        import vlmeval.dataset.image_vqa as vqa

        assert list(vqa.load(str(file))["prediction"]) == ["0042", "3.50"]


def test_nothing_in_the_process_is_left_changed(tmp_path):
    import vlmeval.dataset.image_vqa as vqa
    from vlmeval.dataset.utils import multiple_choice

    functions = (vqa.mp, vqa.load, multiple_choice.timestr)
    environment, scratch = dict(os.environ), set(Path("/tmp").glob("*.tsv"))
    run(tmp_path / "a", "mmbench_en", oracle("mmbench_en", tmp_path / "t"), samples=2)
    run(tmp_path / "b", "gqa", oracle("gqa", tmp_path / "t"), samples=2)
    assert (vqa.mp, vqa.load, multiple_choice.timestr) == functions
    assert dict(os.environ) == environment
    assert set(Path("/tmp").glob("*.tsv")) <= scratch


IMPORT = """
import logging, ssl
before = ssl._create_default_https_context, list(logging.getLogger().handlers)
from vtprune.harness.evaluation.engines import vlm_import
vlm_import.load()
assert ssl._create_default_https_context is before[0], "TLS verification was switched off"
import torch
assert torch.is_grad_enabled(), "gradients were switched off for the whole process"
assert logging.getLogger().handlers == before[1], "a root handler was added"
from hydra.core.override_parser.overrides_parser import OverridesParser
import math_verify
assert OverridesParser.create().parse_overrides(["a=[1,2]"])[0].value() == [1, 2]
"""


@pytest.mark.slow
def test_the_import_leaves_tls_and_logging_alone_and_hydra_still_parses(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "HOME": str(tmp_path)}, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (tmp_path / "LMUData").exists(), "a data folder appeared in the home directory"
    assert ssl._create_default_https_context is not ssl._create_unverified_context
    assert not [h for h in logging.getLogger().handlers if "vlmeval" in repr(h)]


def test_the_published_md5_is_back_after_the_table_is_open(tmp_path):
    from vlmeval.dataset.image_yorn import ImageYORNDataset

    published = ImageYORNDataset.DATASET_MD5["POPE"]
    run(tmp_path, "pope", oracle("pope", tmp_path / "t"), samples=2)
    assert ImageYORNDataset.DATASET_MD5["POPE"] == published


def test_a_missing_table_is_an_error_and_no_download(tmp_path):
    from vtprune.harness.evaluation.data import source
    from vtprune.harness.evaluation.engines import vlm_table

    with pytest.raises(HarnessError, match=r"POPE\.tsv not found"):
        vlm_table.open_dataset("POPE", tmp_path)
    asked = Data("hub", root=str(tmp_path))
    with pytest.raises(ConfigError, match=r"POPE\.tsv is not in"):
        source.prepare(asked, Bench("pope"), Task.of(entry("pope")), tmp_path)


def test_a_published_table_is_identified_by_its_md5(tmp_path):
    from vtprune.harness.evaluation.data import source, tables

    file = tables.build("pope", "POPE", tmp_path, 0, 2)
    asked = Data("hub", root=str(tmp_path))
    first = source.prepare(asked, Bench("pope"), Task.of(entry("pope")), tmp_path)
    assert first.identity == {"source": "hub", "table": "POPE", "md5": tables.md5(file)}
    tables.build("pope", "POPE", tmp_path, 1, 2)
    second = source.prepare(asked, Bench("pope"), Task.of(entry("pope")), tmp_path)
    assert second.identity != first.identity


def test_pictures_come_from_the_table_and_not_from_a_cache(tmp_path):
    """The library caches pictures by row number and never looks at them again."""
    asked = oracle("gqa", tmp_path / "t")
    run(tmp_path / "run", "gqa", asked)
    root = next((tmp_path / "run/cache/mini").glob("GQA*"))
    assert not (root / "images").exists()
    assert asked.asked[0].images()[0].mode == "RGB"


@pytest.mark.parametrize(
    ("style", "name", "ends"),
    [
        ("generic", "mmbench_en", "Please select the correct answer from the options above. \n"),
        ("llava", "mmbench_en", "Answer with the option's letter from the given choices directly."),
        ("qwen2vl", "mmbench_en", "Please select the correct answer from the options above."),
        ("generic", "gqa", "\nAnswer the question using a single word or phrase."),
        ("llava", "gqa", "\nAnswer the question using a single word or phrase."),
        ("qwen2vl", "gqa", "answer the question with short words or phrases if possible."),
        ("generic", "pope", "in the image?"),
        ("qwen2vl", "pope", "in the image? Please answer yes or no."),
        ("qwen2vl", "mme", "in the image? Please answer yes or no."),
    ],
)
def test_prompt_styles(style, name, ends, tmp_path):
    answerer = tools.constant()
    run(tmp_path, name, answerer, samples=2, model={"prompt": {ENGINE: style}})
    assert answerer.asked[0].prompt.endswith(ends)


KILLED = """
import os, signal, sys
from pathlib import Path
from tests import bench_tools as tools, test_engine_vlmeval as engine

folder = Path(sys.argv[1])
right = engine.oracle("pope", folder / "table").answer_to
def answer(question):
    if question.doc_id == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return right(question)
engine.run(folder, "pope", tools.Scripted(answer), batch_size=1)
"""


@pytest.mark.slow
def test_after_kill_9_only_the_rest_is_asked(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment)
    assert done.returncode == -signal.SIGKILL
    answerer = oracle("pope", tmp_path / "table")
    outcome = run(tmp_path, "pope", answerer, batch_size=1)
    assert [question.doc_id for question in answerer.asked] == [5, 6, 7]
    assert outcome.metrics["Overall/acc"] == 100
    lines = (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["doc_id"] for line in lines] == list(range(8))


def test_pip_check_complains_about_this_package_only():
    """It is installed without its own pins, two of which would break Hydra."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "check"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        encoding="utf-8",
    )
    known = ("ms-vlmeval ", "decord ", "No broken")  # decord's wheel carries an old platform tag
    other = [line for line in done.stdout.splitlines() if not line.startswith(known)]
    assert other == []


def test_without_the_package_one_line_names_the_two_commands(monkeypatch):
    import importlib.metadata as metadata

    from vtprune.harness.request import identity as cell

    real = metadata.version

    def version(name):
        if name in ("ms-vlmeval", "vlmeval"):
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(ConfigError, match=r"\.\[vlmeval\].*--no-deps ms-vlmeval==0\.0\.20"):
        cell.versions("vlmevalkit")
