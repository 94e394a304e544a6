"""The store: journal, resume, atomic result, and what a key depends on."""

from __future__ import annotations

import copy
import json
import shutil

import pytest

from tests import stored
from vtprune.harness.request import checkpoint
from vtprune.harness.request import identity as cells
from vtprune.harness.request.device import Runtime
from vtprune.harness.request.errors import HarnessError
from vtprune.harness.request.request import Request
from vtprune.harness.store.cell import Store
from vtprune.harness.store.journal import Journal, drop_torn_line, read_journal, write_atomic
from vtprune.harness.store.schema import SCHEMA

CONFIG = {
    "ratio": 0.9,
    "seed": 0,
    "batch_size": 8,
    "decoding": {"max_new_tokens": 32},
    "model": {"name": "embedded"},
    "method": {"name": "gprune", "threshold": 0.5, "iterations": 5},
    "bench": {
        "name": "textvqa",
        "label": "TextVQA",
        "limit": None,
        "indices": None,
        "engines": {"lmms_eval": {"task": "textvqa_val"}},
    },
    "engine": {"name": "lmms_eval"},
    "force": False,
    "debug": False,
    "progress": "auto",
    "paths": {"results": "results"},
}
RUNTIME = {"device": "cpu", "dtype": "float32", "attention": "sdpa", "threads": 1}
DATA = {"source": "mini", "seed": 0, "rows": 200, "content": "abc"}


def make(change=None, checkpoint="f00d", runtime=RUNTIME, data=DATA):
    config = copy.deepcopy(CONFIG)
    if change:
        change(config)
    return cells.make(Request(config), checkpoint=checkpoint, model_type="llava",
                      runtime=Runtime(**runtime), data=data)  # fmt: skip


def put(path, value):
    def change(config):
        *inner, last = path.split(".")
        for name in inner:
            config = config[name]
        config[last] = value

    return change


ANSWERING = [
    ("ratio", 0.5),
    ("seed", 1),
    ("batch_size", 4),
    ("decoding.max_new_tokens", 16),
    ("method.threshold", 0.6),
    ("method.name", "random"),
    ("method", {"name": "custom", "_target_": "tests.slurm.methods.Drill"}),
    ("bench.limit", 8),
    ("bench.indices", [1, 2]),
    ("bench.engines.lmms_eval.task", "other"),
]
IRRELEVANT = [
    ("force", True),
    ("debug", True),
    ("progress", False),
    ("paths.results", "/elsewhere"),
    ("model.name", "renamed"),
    ("bench.label", "Text VQA"),
    ("method.iterations", 5.0),
]


@pytest.mark.parametrize(("path", "value"), ANSWERING)
def test_the_key_changes_with_what_determines_answers(path, value):
    assert make(put(path, value)).key != make().key


@pytest.mark.parametrize(("path", "value"), IRRELEVANT)
def test_the_key_stays_when_nothing_that_matters_changes(path, value):
    assert make(put(path, value)).key == make().key


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint": "beef"},
        {"data": {**DATA, "content": "abd"}},
        {"data": {**DATA, "source": "hub"}},
        *({"runtime": {**RUNTIME, k: v}} for k, v in
          {"device": "cuda", "dtype": "float16", "attention": "eager", "threads": 2}.items()),
    ],
)  # fmt: skip
def test_the_key_changes_with_model_runtime_and_data(change):
    assert make(**change).key != make().key


def test_the_key_changes_with_library_versions(monkeypatch):
    before = make().key
    monkeypatch.setattr(cells, "versions", lambda engine: {"torch": "9.9"})
    assert make().key != before


def test_two_gpus_of_a_machine_share_a_cell():
    first = make(runtime={**RUNTIME, "device": "cuda:0"})
    assert first.key == make(runtime={**RUNTIME, "device": "cuda:1"}).key


def test_the_baseline_is_one_cell_whatever_the_methods_options():
    def baseline(config):
        config["ratio"], config["method"] = 0, {"name": "none", "positions": "original"}

    def other(config):
        baseline(config)
        config["method"]["positions"] = "compact"
        config["seed"] = 7

    assert make(baseline).key == make(other).key
    assert make(baseline).directory.startswith("textvqa/embedded/none-0-")


def test_the_key_is_stable_across_processes():
    identity = {"b": 1.0, "a": [1, {"d": None, "c": "x"}]}
    assert cells.canonical_json(identity) == '{"a":[1,{"c":"x","d":null}],"b":1}'


def test_a_torn_last_line_is_dropped_and_other_damage_reported(tmp_path):
    file = tmp_path / "samples.jsonl"
    file.write_text('{"doc_id": 0}\n{"doc_id": 1}\n{"doc_', encoding="utf-8")
    assert [e["doc_id"] for e in read_journal(file)] == [0, 1]
    assert drop_torn_line(file) and not drop_torn_line(file)
    with Journal(file) as journal:
        journal.append({"doc_id": 2, "answer": "naïve \u2028"})
    assert [e["doc_id"] for e in read_journal(file)] == [0, 1, 2]
    file.write_text('{"doc_id": 0}\nnonsense\n{"doc_id": 1}\n', encoding="utf-8")
    with pytest.raises(HarnessError, match="line 2 is damaged"):
        read_journal(file)


def test_each_sample_is_on_disk_as_soon_as_it_is_appended(tmp_path):
    file = tmp_path / "samples.jsonl"
    with Journal(file) as journal:
        for number in range(3):
            journal.append({"doc_id": number})
            assert len(read_journal(file)) == number + 1


def test_a_result_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "result.json"
    write_atomic(file, '{"old": 1}')

    def crash(*_):
        raise OSError("power cut")

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(OSError, match="power cut"):
        write_atomic(file, '{"new": 2}')
    assert json.loads(file.read_text(encoding="utf-8")) == {"old": 1}


def test_a_cell_is_finished_when_and_only_when_its_result_exists(tmp_path):
    store = Store(tmp_path, make())
    store.open(CONFIG)
    assert store.result() is None
    with Journal(store.journal_file) as journal:
        journal.append({"doc_id": 0, "error": "boom"})
        journal.append({"doc_id": 0, "error": None})
    assert store.samples() == [{"doc_id": 0, "error": None}], "the last entry of a sample wins"
    store.finish([{"doc_id": 0, "score": 1}], stored.result(score=1.0))
    found = store.result()
    assert found == {**stored.result(score=1.0), "schema": SCHEMA, "directory": str(store.folder)}
    assert (store.folder / "cell.yaml").exists()


def test_force_sets_the_old_run_aside_instead_of_deleting_it(tmp_path):
    store = Store(tmp_path, make())
    store.open(CONFIG)
    store.finish([{"doc_id": 0}], stored.result())
    store.open(CONFIG, fresh=True)
    assert store.result() is None and store.samples() == []
    (old,) = store.folder.glob("previous-*/result.json")
    assert json.loads(old.read_text(encoding="utf-8"))["score"] == 1.0


def test_the_fingerprint_follows_content_not_place(tmp_path):
    first = tmp_path / "a"
    first.mkdir()
    (first / "config.json").write_text("{}", encoding="utf-8")
    (first / "model.safetensors").write_bytes(b"weights")
    (first / "README.md").write_text("card", encoding="utf-8")
    before = checkpoint.fingerprint(first)
    second = tmp_path / "b"
    shutil.copytree(first, second)
    (second / "README.md").write_text("another card", encoding="utf-8")
    assert checkpoint.fingerprint(second) == before
    (second / "model.safetensors").write_bytes(b"Weights")
    assert checkpoint.fingerprint(second) != before


def test_large_files_of_equal_size_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "WHOLE_FILE_LIMIT", 1024)
    file = tmp_path / "model.safetensors"
    data = bytearray(3 * 2**20)
    file.write_bytes(data)
    before = checkpoint.fingerprint(tmp_path)
    data[2**20 :] = b"\1" * (2 * 2**20)  # another fine-tune: same header, other weights
    file.write_bytes(data)
    assert checkpoint.fingerprint(tmp_path) != before
