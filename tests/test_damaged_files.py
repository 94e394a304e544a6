"""One file of the store that cannot be read is one line; every other cell is still there."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests import command_tools, stored
from tests import table_tools as tools
from vtprune.harness.reporting.tables import gate, spec
from vtprune.harness.reporting.tables.frame import read as frame
from vtprune.harness.reporting.tables.lookup import find
from vtprune.harness.store import index
from vtprune.harness.store.cell import Store
from vtprune.harness.store.schema import SCHEMA, Damaged
from vtprune.harness.sweep import status

ROOT = Path(__file__).resolve().parent.parent
#: what a crash, a full disk, an editor or another version leaves behind, and what is said of it
HARM = {
    "empty": (b"", "is empty"),
    "cut": (b'{"key": "abc", "sco', "is damaged"),
    "zeros": (b"\0" * 64, "is damaged"),
    "latin": ('{"key": "é"}'.encode("latin-1"), "is damaged"),
    "list": (b"[1, 2]", "is no stored result"),
    "older": (b'{"key": "abc", "model": "m"}', "another version: it has no 'bench'"),
    "newer": (json.dumps(stored.result(schema=SCHEMA + 1)).encode(), "newer version"),
}


@pytest.fixture(autouse=True)
def fresh():
    index.tell.cache_clear()


@pytest.fixture
def table():
    return spec.load("mini_table2")


@pytest.fixture
def filled(tmp_path, table):
    tools.fill(tmp_path, table)
    return tmp_path


def harmed(results: Path, harm: str) -> Path:
    file = min((results / "runs").glob("*/*/*/result.json"))
    file.write_bytes(HARM[harm][0])
    return file


@pytest.mark.parametrize("harm", HARM)
def test_the_reader_names_the_file_and_what_to_do(tmp_path, harm):
    content, said = HARM[harm]
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(Damaged) as caught:
        index.result(tmp_path)
    text = str(caught.value)
    assert text.startswith(str(tmp_path / "result.json")) and said in text
    assert "force=true" in text or harm == "newer"
    assert "\n" not in text


@pytest.mark.parametrize("harm", HARM)
def test_every_listing_shows_the_other_cells_and_one_line(filled, table, harm, capsys):
    whole = len(frame(filled))
    file = harmed(filled, harm)
    assert len(frame(filled)) == whole - 1
    assert sum(cell.done for cell in find(table, filled)) > 0
    assert len(list(index.finished(filled))) == whole - 1
    told = [line for line in capsys.readouterr().err.splitlines() if str(file) in line]
    assert len(told) == 1 and HARM[harm][1] in told[0] and told[0].startswith("note: ")


@pytest.mark.parametrize("harm", ["empty", "cut", "older"])
def test_a_baseline_that_cannot_be_read_is_no_baseline(filled, harm):
    pruned = next(r for r in index.finished(filled) if not gate.is_baseline(r))
    for file in (filled / "runs").glob("*/*/none-*/result.json"):
        file.write_bytes(HARM[harm][0])
    assert gate.status(pruned) == gate.NOT_RUN


@pytest.mark.parametrize("harm", HARM)
def test_the_status_of_a_cell_says_why_its_result_does_not_count(filled, harm):
    file = harmed(filled, harm)
    state = status.of_folder(file.parent)
    assert state.name == status.INTERRUPTED and HARM[harm][1] in state.reason


@pytest.mark.parametrize("command", [
    ["scripts/tables.py", "--results", "{}"],
    ["scripts/tables.py", "table=mini_table2", "status", "results={}"],
    ["scripts/tables.py", "table=mini_table2", "show", "results={}"],
    ["scripts/tables.py", "table=mini_table2", "export", "results={}", "out={}/out"],
    ["scripts/report.py", "table=mini_table2", "results={}", "out={}/page.html"],
    ["scripts/cost_figures.py", "{}", "--out", "{}/figures"],
    ["scripts/figures.py", "table=mini_table2", "kind=pareto", "results={}", "out={}/figures"],
    ["scripts/wandb_dashboard.py", "--results", "{}"],
], ids=lambda c: " ".join(c[:3]))  # fmt: skip
def test_every_command_goes_on_and_says_one_line(filled, command):
    file = harmed(filled, "cut")
    line = [part.format(filled) for part in command]
    done = command_tools.run(*line)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    assert sum(str(file) in said for said in done.stderr.splitlines()) == 1


def test_a_file_without_a_number_is_read_as_the_first_form(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(stored.result()), encoding="utf-8")
    assert index.result(tmp_path)["score"] == 1.0


def test_a_damaged_timing_hides_no_other(tmp_path, capsys):
    good = {k: stored.result()[k] for k in ("key", "model", "method", "ratio", "identity")}
    good |= {"batches": [], "provenance": {}, "finished": "2026"}
    for name, content in (("a", json.dumps(good)), ("b", "{"), ("c", json.dumps({"key": "x"}))):
        folder = tmp_path / "runs" / "timing" / "m" / name
        folder.mkdir(parents=True)
        (folder / "timing.json").write_text(content, encoding="utf-8")
    assert len(list(index.timings(tmp_path))) == 1
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize("content", ["", "a: [", "\0"])
def test_a_damaged_description_of_a_cell_is_told_and_empty(tmp_path, content, capsys):
    (tmp_path / "cell.yaml").write_text(content, encoding="utf-8")
    assert index.config(tmp_path) == {}
    assert str(tmp_path / "cell.yaml") in capsys.readouterr().err


@pytest.mark.parametrize("line", [b"garbage", b'{"doc_id": "x"}', b"[1]", b'{"answer":"\xe9"}'])
def test_a_damaged_line_of_a_journal_loses_its_sample_only(tmp_path, line, capsys):
    good = [json.dumps({"doc_id": i, "answer": "a", "error": None}).encode() for i in range(3)]
    file = tmp_path / "samples.jsonl"
    file.write_bytes(b"\n".join([good[0], line, good[2]]) + b"\n")
    assert [entry["doc_id"] for entry in index.samples(tmp_path)] == [0, 2]
    assert f"{file}: line 2 is damaged" in capsys.readouterr().err


def test_line_separators_inside_an_answer_are_no_line_ends(tmp_path):
    entry = {"doc_id": 0, "answer": "a\u2028b\x85c\x0bd", "error": None}
    text = json.dumps(entry, ensure_ascii=False) + "\n"
    (tmp_path / "samples.jsonl").write_text(text, encoding="utf-8")
    assert index.samples(tmp_path) == [entry]


def test_two_set_asides_of_one_second_keep_both(tmp_path):
    class Cell:
        directory = "cell"

    store = Store(tmp_path, Cell())
    store.folder.mkdir(parents=True)
    for score in (1, 2, 3):
        store.result_file.write_text(str(score), encoding="utf-8")
        store.reopen()
    kept = [f.read_text(encoding="utf-8") for f in store.folder.glob("previous-*/result.json")]
    assert sorted(kept) == ["1", "2", "3"]


RUN = ["run.py", "method=random", "ratio=0.5", "bench.limit=3", "batch_size=1"]


def run(results: Path, *more: str) -> subprocess.CompletedProcess:
    return command_tools.run(*RUN, f"paths.results={results}", *more)


@pytest.mark.slow
def test_a_damaged_result_is_finished_again_from_its_answers_and_force_makes_a_new_one(tmp_path):
    assert run(tmp_path).returncode == 0
    (file,) = (tmp_path / "runs").glob("*/*/*/result.json")
    score, journal = json.loads(file.read_bytes())["score"], file.parent / "samples.jsonl"
    lines = journal.read_text(encoding="utf-8").splitlines()

    file.write_bytes(b"")
    journal.write_text("\n".join([lines[0], "garbage", lines[2]]) + "\n", encoding="utf-8")
    again = run(tmp_path)
    assert again.returncode == 0, again.stderr
    made = json.loads(file.read_bytes())
    assert made["score"] == score and made["resumed_after"] == 2 and made["schema"] == SCHEMA
    assert "is set aside" in again.stdout + again.stderr and "line 2" in again.stderr

    file.write_bytes(b"{")
    forced = run(tmp_path, "force=true")
    assert forced.returncode == 0, forced.stderr
    made = json.loads(file.read_bytes())
    assert made["score"] == score and made["resumed_after"] == 0
    assert len(list(file.parent.glob("previous-*"))) == 2


@pytest.mark.slow
def test_a_sweep_counts_a_cell_with_a_damaged_result_as_unfinished(tmp_path):
    assert run(tmp_path).returncode == 0
    (file,) = (tmp_path / "runs").glob("*/*/*/result.json")
    file.write_bytes(b"")
    swept = run(tmp_path, "-m")
    assert swept.returncode == 0, swept.stderr
    assert json.loads(file.read_bytes())["n_samples"] == 3
    assert np.isfinite(json.loads(file.read_bytes())["score"])
