"""A whole cell through the command line, on a tiny random checkpoint and mini data."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from tests import checkpoint_tools
from vtprune.harness import cli
from vtprune.harness.request import fingerprint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return checkpoint_tools.save(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def run(checkpoint, tmp_path, capsys):
    """Runs the command line; returns exit status, stdout and stderr."""

    def go(*arguments):
        common = [f"model.path={checkpoint}", f"paths.results={tmp_path}"]
        if "data=hub" not in arguments:
            common.append("data.samples=6")
        given = {argument.partition("=")[0] for argument in arguments}
        common = [one for one in common if one.partition("=")[0] not in given]
        status = cli.main([*arguments, *common, "decoding.max_new_tokens=3"])
        return status, *capsys.readouterr()

    return go


def cells(folder):
    return sorted(folder.glob("runs/textvqa/embedded/*"))


def test_a_cell_is_stored_printed_and_not_run_twice(run, tmp_path):
    status, out, err = run("method=gprune", "ratio=0.5")
    assert (status, err) == (0, "")
    assert "gprune" in out and "mini" in out and "results: " in out
    (folder,) = cells(tmp_path)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert result["key"].startswith(folder.name.rpartition("-")[2])
    assert (result["data"], result["n_samples"], result["n_failed"]) == ("mini", 6, 0)
    assert result["counters"]["removal"] == 0.5
    assert set(result["counters"]["macs"]) >= {"vision", "projector", "selection", "llm", "total"}
    assert result["peak_memory"]["rss"] > 0 and result["provenance"]["versions"]["torch"]
    described = yaml.safe_load((folder / "cell.yaml").read_text(encoding="utf-8"))
    assert described["identity"]["method"]["ratio"] == 0.5
    assert (folder / "log.txt").read_text(encoding="utf-8")

    before = (folder / "result.json").stat().st_mtime_ns
    status, out, _ = run("method=gprune", "ratio=0.5")
    assert status == 0 and "finished on" in out and "gprune" in out
    assert (folder / "result.json").stat().st_mtime_ns == before

    status, out, _ = run("method=gprune", "ratio=0.5", "force=true")
    assert status == 0 and "finished on" not in out
    assert list(folder.glob("previous-*/result.json"))


def test_an_interrupted_cell_continues_where_it_was(run, tmp_path):
    run("method=random", "ratio=0.5")
    (folder,) = cells(tmp_path)
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    first = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    (folder / "result.json").unlink()
    (folder / "samples.jsonl").write_text("".join(lines[:4]) + lines[4][:30], encoding="utf-8")
    status, out, _ = run("method=random", "ratio=0.5")
    assert status == 0 and "continuing after 4 answered samples" in out
    second = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert second["resumed_after"] == 4 and second["score"] == first["score"]
    again = [
        json.loads(line)
        for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [s["answer"] for s in again] == [json.loads(line)["answer"] for line in lines]


def test_a_sweep_runs_the_baseline_once_and_shows_all(run, tmp_path):
    status, out, err = run("-m", "method=none,random", "ratio=0.5,0.9", "bench.limit=2")
    assert status == 0 and err == ""
    assert "method=none has no ratio" in out and "[1]" not in out, "ratio 0.9 of it is the same"
    assert [folder.name.rpartition("-")[0] for folder in cells(tmp_path)] == [
        "none-0",
        "random-0.5",
        "random-0.9",
    ]
    assert out.count("samples/s") == 1, "one table for the whole sweep"


def test_a_failed_job_does_not_take_the_others_down(run, tmp_path):
    status, out, err = run("-m", "method=random", "ratio=0.5,1.5", "bench.limit=2")
    assert status == 1
    assert "failed: [1] " in err and "ratio must be a number" in err
    assert len(cells(tmp_path)) == 1 and "random" in out


def test_a_bad_option_value_is_one_line_and_leaves_no_directory(run, tmp_path):
    status, _, err = run("method=gprune", "ratio=0.5", "method.edge=clop")
    assert status == 2 and err.count("\n") == 1 and "did you mean 'clip'" in err
    assert cells(tmp_path) == []


def test_a_removal_the_model_is_too_shallow_for_is_refused_at_once(run, tmp_path):
    status, _, err = run("method=fastv", "ratio=0.99")
    assert status == 2 and err.count("\n") == 1 and "impossible" in err
    assert cells(tmp_path) == []


def test_a_cell_of_other_code_is_told_and_run_again_on_request(run, tmp_path, monkeypatch):
    cell = ["method=gprune", "ratio=0.5"]
    run(*cell)
    assert "finished on" in run(*cell, "force=stale")[1], "nothing changed"
    monkeypatch.setattr(fingerprint, "of_runtime", lambda: "edited")
    assert "force=stale runs it again" in run(*cell)[1]
    said = run(*cell, "force=stale")[1]
    assert "what other code had answered is set aside" in said
    (folder,) = cells(tmp_path)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert (result["provenance"]["runtime"], result["resumed_after"]) == ("edited", 0)
    (aside,) = folder.glob("previous-*")
    assert (aside / "result.json").exists() and (aside / "samples.jsonl").exists()
    assert "changed" not in run(*cell, "force=stale")[1], "it is the newest now"


@pytest.mark.parametrize("again", [(), ("force=failed",)])
def test_an_interrupted_cell_of_other_code_begins_anew(run, tmp_path, monkeypatch, again):
    cell = ["method=gprune", "ratio=0.5"]
    run(*cell)
    (folder,) = cells(tmp_path)
    (folder / "result.json").unlink()
    monkeypatch.setattr(fingerprint, "of_runtime", lambda: "edited")
    assert run(*cell, *again)[0] == 0
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert result["resumed_after"] == 0


def test_a_chat_template_of_ones_own_is_a_cell_of_its_own(run, checkpoint, tmp_path):
    """A folder without one is refused with a remedy, and the remedy works as it is written."""
    folder = tmp_path / "bare"
    shutil.copytree(checkpoint, folder)
    (folder / "chat_template.jinja").unlink()
    cell = ["method=gprune", "ratio=0.5", "bench.limit=2"]
    status, _, err = run(*cell, f"model.path={folder}")
    assert status != 0 and "model.chat_template=FILE.jinja or one of chatml, llama3" in err
    file = tmp_path / "mine.jinja"
    shutil.copy(checkpoint / "chat_template.jinja", file)
    status, _, err = run(*cell, f"model.path={folder}", f"model.chat_template={file}")
    assert (status, err) == (0, "")
    run(*cell)
    done = sorted(tmp_path.rglob("result.json"), key=lambda file: file.stat().st_mtime_ns)
    with_own, plain = (json.loads(file.read_text(encoding="utf-8")) for file in done)
    assert len(with_own["identity"]["chat_template"]) == 16
    assert "chat_template" not in plain["identity"]
    status, _, err = run(*cell, "model.chat_template=chatm")
    assert status == 2 and "did you mean 'chatml'" in err and err.count("\n") == 1


def test_a_method_class_from_elsewhere(run, tmp_path):
    target = "method._target_=vtprune.methods.random.RandomPruning"
    status, _, err = run("method=custom", target, "ratio=0.5", "+method.newline=drop")
    assert (status, err) == (0, "")
    (folder,) = cells(tmp_path)
    assert folder.name.startswith("random-0.5-")  # one request, one cell
    status, _, err = run("method=custom", "method._target_=no.such.Class", "ratio=0.5")
    assert status == 2 and err.count("\n") == 1 and "cannot import no.such: No module named" in err
    status, _, err = run("method=custom", "method._target_=pathlib.Path", "ratio=0.5")
    assert status == 2 and "is not a vtprune.methods.PruningMethod" in err


def test_paths_of_this_machine_come_from_an_untracked_file(checkpoint, tmp_path, capsys):
    (tmp_path / "conf/local").mkdir(parents=True)
    lines = f"paths: {{results: {tmp_path}/elsewhere}}\nmodel: {{path: {checkpoint}}}\n"
    (tmp_path / "conf/local/default.yaml").write_text(lines, encoding="utf-8")
    conf = ["--config-dir", str(tmp_path / "conf")]
    assert cli.main([*conf, "bench.limit=1", "data.samples=6"]) == 0
    assert len(cells(tmp_path / "elsewhere")) == 1
    (tmp_path / "conf/local/default.yaml").write_text("paths: {result: /x}\n", encoding="utf-8")
    assert cli.main(conf) == 2
    assert "did you mean 'paths.results'?" in capsys.readouterr().err


def test_mini_data_never_passes_for_hub_data(run, tmp_path):
    run("method=random", "ratio=0.5", "bench.limit=1")
    (mini,) = (tmp_path / ".cache/mini").glob("textvqa-*")
    status, _, err = run("data=hub", f"data.root={mini}")
    assert status == 2 and "holds drawn mini data" in err


def test_a_local_copy_of_hub_data_is_read_and_named_hub(run, tmp_path):
    run("method=random", "ratio=0.5", "bench.limit=1")
    (parquet,) = (tmp_path / ".cache/mini").rglob("validation-*.parquet")
    folder = tmp_path / "copy/lmms-lab-encoder/textvqa/data"
    folder.mkdir(parents=True)
    (folder / parquet.name).write_bytes(parquet.read_bytes())
    options = ["method=random", "ratio=0.5", "bench.limit=2", "data=hub"]
    status, out, err = run(*options, f"data.root={tmp_path}/copy")
    assert (status, err) == (0, "")
    assert " hub " in out and "not the benchmark" not in out
    results = [json.loads((f / "result.json").read_text(encoding="utf-8")) for f in cells(tmp_path)]
    assert sorted(r["data"] for r in results) == ["hub", "mini"]


def test_a_failed_sample_marks_the_cell(run, tmp_path, monkeypatch):
    from vtprune.harness.cell.answerer import ModelAnswerer

    real = ModelAnswerer.answer

    def answer(self, batch):
        if any(question.doc_id == 3 for question in batch):
            raise RuntimeError("out of memory")
        return real(self, batch)

    monkeypatch.setattr(ModelAnswerer, "answer", answer)
    status, out, _ = run("method=random", "ratio=0.5")
    assert status == 0 and "5/6" in out and "some samples failed" in out
    (folder,) = cells(tmp_path)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert result["n_failed"] == 1
    assert result["failures"] == [{"doc_id": 3, "error": "RuntimeError: out of memory"}]


def test_a_published_label_gives_the_row_its_ratio_and_the_record_the_true_mean(tmp_path, capsys):
    base = ["method=sparsevlm", "method.nominal=64", "bench.limit=2", f"paths.results={tmp_path}"]
    assert cli.main([*base, "ratio=0.5"]) == 2
    assert "is ratio 0.8889 by its label" in capsys.readouterr().err
    assert cli.main(base) == 0
    (file,) = tmp_path.glob("runs/*/*/*/result.json")
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["ratio"] == 0.8889
    assert result["counters"]["removal"] < 0.8
