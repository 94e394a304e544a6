"""Any task of an engine by its name, and task files of one's own."""

from __future__ import annotations

import importlib.util
import json

import pytest

from vtprune.harness import cli
from vtprune.harness.evaluation import prefetch
from vtprune.harness.evaluation.data import mini, tables
from vtprune.harness.evaluation.prefetch_command import requests
from vtprune.harness.request import compose as wanted
from vtprune.harness.request import engine_tasks, identity, words
from vtprune.harness.request.errors import ConfigError
from vtprune.harness.store import index

FAST = ["method=none", "progress=false", "decoding.max_new_tokens=4"]

TASK = """dataset_path: parquet
dataset_kwargs:
  data_files: {{test: {rows}}}
task: "my_signs"
test_split: test
output_type: generate_until
doc_to_visual: !function utils.picture
doc_to_text: !function utils.question
doc_to_target: !function utils.target
process_docs: !function utils.every_other
generation_kwargs: {{max_new_tokens: 16, do_sample: false}}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
"""
UTILS = """def picture(doc):
    return [doc["image"].convert("RGB")]


def question(doc):
    return doc["question"] + "\\nAnswer the question using a single word or phrase."


def target(doc):
    return doc["answers"][0]


def every_other(dataset):
    return dataset.select(range(0, len(dataset), 2))
"""


@pytest.fixture
def mine(tmp_path):
    """A folder of task files over a parquet file of drawn signs."""
    (rows,) = mini.build("textvqa", tmp_path / "drawn", n=8).rglob("*.parquet")
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "signs.yaml").write_text(TASK.format(rows=rows), encoding="utf-8")
    (folder / "utils.py").write_text(UTILS, encoding="utf-8")
    return folder


def run(results, *arguments):
    return cli.main([*FAST, f"paths.results={results}", *map(str, arguments)])


def only(results):
    (found,) = index.finished(results)
    return found


def test_a_task_of_the_engine_runs_by_name_on_drawn_rows(tmp_path, capsys):
    assert run(tmp_path, "bench=lmms_eval:ai2d", "data.samples=6", "bench.limit=4") == 0
    found = only(tmp_path)
    assert found["bench"] == "ai2d" and found["metric"] == "exact_match"
    assert found["n_samples"] == 4 and found["engine"] == "lmms_eval"
    assert "exact_match" in found["metrics"] and 0 <= found["score"] <= 1


def test_a_task_of_ones_own_is_asked_row_by_row_as_it_makes_them(mine, tmp_path):
    chosen = ["bench=lmms_eval:my_signs", f"engine.include_path={mine}", "data=hub",
              "bench.scale=100", "bench.unit=%", "decoding.max_new_tokens=8"]  # fmt: skip
    assert run(tmp_path / "all", *chosen) == 0
    found = only(tmp_path / "all")
    assert found["n_samples"] == 4, "the task keeps every other of eight rows"
    assert found["score"] >= 50, "the small model reads signs"
    assert run(tmp_path / "two", *chosen, "bench.indices=[1,3]") == 0
    asked = index.entries(tmp_path / "two" / "runs" / "my_signs" / "embedded"
                          / f"none-0-{only(tmp_path / 'two')['key'][:8]}")  # fmt: skip
    assert sorted(asked) == [1, 3]


def test_changed_task_files_and_changed_data_are_other_cells(mine):
    def key():
        config = wanted.compose({"bench": "lmms_eval:my_signs", "data": "hub",
                                 "engine.include_path": str(mine)})  # fmt: skip
        return identity.canonical_json(wanted.asked(config))

    first = key()
    assert key() == first
    utils = mine / "utils.py"
    utils.write_text(UTILS.replace("single word", "single  word"), encoding="utf-8")
    assert key() != first
    found = engine_tasks.find("my_signs", str(mine))
    before = engine_tasks._contents(found.local)
    found.local[0].write_bytes(found.local[0].read_bytes() + b"\0")
    assert engine_tasks._contents(found.local) != before


@pytest.mark.parametrize("arguments, message", [
    (["bench=lmms_eval:ai2dd"], "unknown task of lmms-eval 'ai2dd'; did you mean 'ai2d'?"),
    (["bench=lmms_eval:mmmu"], "is a group of tasks; name one: mmmu_test, mmmu_val"),
    (["bench=lmms_eval:realworldqa", "engine.include_path=/no/such"], "no such folder: /no/such"),
    (["bench=lmms_eval:iconqa_val"], "data=mini has no stand-in for bench=iconqa_val"),
    (["bench=lmms_eval:ai2d,gqa"], "a task of an engine stands alone"),
    (["bench=named"], "bench=lmms_eval:TASK"),
    (["bench=vlmevalkit:POPE", "engine=lmms_eval"], "takes a task"),
])  # fmt: skip
def test_what_cannot_be_run_is_told_in_one_line(arguments, message, tmp_path, capsys):
    assert run(tmp_path, *arguments) == 2
    told = capsys.readouterr().err.strip()
    assert message in told and "\n" not in told


def test_tasks_that_want_no_free_answer_are_refused_with_their_kind(tmp_path):
    (tmp_path / "one.yaml").write_text(
        "task: ranked\noutput_type: loglikelihood\ndataset_path: a/b\ntest_split: test\n"
        "metric_list: [{metric: acc}]\n", encoding="utf-8",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="wants loglikelihood; only free answers"):
        engine_tasks.find("ranked", str(tmp_path))


def test_a_missing_data_file_is_named(tmp_path):
    (tmp_path / "one.yaml").write_text(
        TASK.format(rows="/no/such.parquet"), encoding="utf-8"
    )
    with pytest.raises(ConfigError, match=r"no such data file: /no/such\.parquet"):
        engine_tasks.find("my_signs", str(tmp_path))


def test_included_files_count_and_the_own_folder_comes_first(tmp_path):
    (tmp_path / "base").write_text("dataset_path: a/b\ntest_split: test\n", encoding="utf-8")
    (tmp_path / "ai2d.yaml").write_text(
        "task: ai2d\ninclude: base\nmetric_list: [{metric: mine, higher_is_better: false}]\n",
        encoding="utf-8",
    )
    found = engine_tasks.find("ai2d", str(tmp_path))
    assert (found.dataset, found.metric, found.higher_is_better) == ("a/b", "mine", False)
    assert engine_tasks.find("ai2d").metric == "exact_match"


def test_the_command_line_and_the_advice_name_the_task(tmp_path):
    made = words.own_bench(["bench=vlmevalkit:MMStar", "method=none"])
    assert made[:3] == ["bench=named", "bench.engines.vlmevalkit.task=MMStar", "engine=vlmevalkit"]
    (request,) = requests(["bench=lmms_eval:mmstar"])
    from vtprune.harness.request.benches import seen_by_engine

    seen = seen_by_engine(request).changed(choices={"bench": "named", "model": "embedded"})
    assert "bench=lmms_eval:mmstar" in prefetch.command(seen)


def test_a_table_may_have_a_task_as_its_column():
    config = wanted.compose({"bench": "lmms_eval:mmstar", "data": "mini"})
    asked = wanted.asked(config)
    assert asked["bench"]["name"] == "mmstar" and asked["bench"]["task"] == "mmstar"
    assert json.dumps(asked)


@pytest.mark.slow
def test_a_table_of_vlmevalkit_runs_by_its_name(tmp_path):
    if not importlib.util.find_spec("vlmeval"):
        pytest.skip("ms-vlmeval is not installed")
    root = tables.build("pope", "POPE", tmp_path / "tables", n=6).parent
    chosen = ["bench=vlmevalkit:POPE", "data=hub", f"data.root={root}"]
    assert run(tmp_path / "results", *chosen) == 0
    found = only(tmp_path / "results")
    assert (found["bench"], found["engine"], found["metric"]) == ("POPE", "vlmevalkit", "Overall")
    assert found["n_samples"] == 6 and found["score"] > 50
