"""Stored answers are scored again without the model, and old and new scores stay apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vtprune.harness import cli
from vtprune.harness.cell import run
from vtprune.harness.evaluation.engines import lmms_scores
from vtprune.harness.reporting.tables import lookup, spec
from vtprune.harness.request import identity
from vtprune.harness.request.errors import ConfigError
from vtprune.harness.store import index

CELL = ["method=gprune", "ratio=0.9", "bench=textvqa", "data.samples=6", "progress=false"]


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """A store with one finished cell."""
    results = tmp_path_factory.mktemp("answered")
    assert cli.main([*CELL, f"paths.results={results}"]) == 0
    return results


@pytest.fixture
def results(answered, tmp_path):
    return Path(shutil.copytree(answered, tmp_path / "results"))


@pytest.fixture
def no_model(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a model is loaded, or a checkpoint looked for")

    monkeypatch.setattr(run, "run_cell", refuse)
    monkeypatch.setattr("vtprune.models.load.load", refuse)
    monkeypatch.setattr("vtprune.harness.request.checkpoint.find", refuse)


def score(results, *more):
    return cli.main([*CELL, "task=score", f"paths.results={results}", *more])


def newer_engine(monkeypatch, version="0.7.99"):
    real = identity.versions
    monkeypatch.setattr(identity, "versions", lambda engine: {**real(engine), "lmms_eval": version})


def test_scoring_again_equals_scoring_at_first(results, no_model, capsys):
    (before,) = index.finished(results)
    assert score(results) == 0
    (after,) = index.finished(results)
    differing = {k for k in before if before[k] != after[k]}
    assert differing <= {"finished"} and after["scoring"]["answers_of"] == before["key"]
    assert index.samples(Path(before["directory"]))  # the journal is there still
    assert "the result that was here is set aside in previous-" in capsys.readouterr().out
    assert list(Path(before["directory"]).glob("previous-*/result.json"))


def test_another_version_of_the_engine_writes_beside_the_old_result(
    results, no_model, monkeypatch, capsys
):
    (old,) = index.finished(results)
    newer_engine(monkeypatch)
    monkeypatch.setattr(lmms_scores, "outcome", halved(lmms_scores.outcome))
    assert score(results) == 0
    told = capsys.readouterr().out
    assert f"exact_match: {old['score']:.2f} with lmms_eval 0.7.3" in told
    assert f"{old['score'] / 2:.2f} with lmms_eval 0.7.99" in told
    found = {r["identity"]["versions"]["lmms_eval"]: r for r in index.finished(results)}
    assert set(found) == {"0.7.3", "0.7.99"} and found["0.7.3"] == old
    new = found["0.7.99"]
    assert new["score"] == old["score"] / 2 and new["key"] != old["key"]
    assert new["counters"] == old["counters"] and new["provenance"] == old["provenance"]
    assert new["scoring"]["before"] == {"scorer": "lmms_eval 0.7.3", "score": old["score"]}
    assert new["scoring"]["now"] == {"scorer": "lmms_eval 0.7.99", "score": new["score"]}
    cell = Path(new["directory"]) / "cell.yaml"
    assert new["key"] in cell.read_text(encoding="utf-8")


def halved(real):
    def outcome(*arguments):
        made = real(*arguments)
        made.metrics = {name: value / 2 for name, value in made.metrics.items()}
        return made

    return outcome


def table(tmp_path):
    file = tmp_path / "one.yaml"
    file.write_text(
        "title: one\nsettings: {model: embedded, data: mini}\ncolumns: [textvqa]\n"
        "rows: [{name: gprune, method: gprune, ratio: [0.9]}]\n", encoding="utf-8",
    )  # fmt: skip
    return spec.load(str(file), {"data.samples": 6})


def test_a_table_shows_the_newest_scores_or_those_of_the_version_asked_for(
    results, no_model, monkeypatch, tmp_path
):
    from dataclasses import replace

    newer_engine(monkeypatch)
    assert score(results) == 0
    asked = table(tmp_path)
    shown = {}
    for scorer in (None, "0.7.3", "0.7.99"):
        (cell,) = lookup.find(replace(asked, scorer=scorer), results)
        shown[scorer] = cell.result["identity"]["versions"]["lmms_eval"]
    assert shown == {None: "0.7.99", "0.7.3": "0.7.3", "0.7.99": "0.7.99"}
    with pytest.raises(ConfigError, match=r"scorer=1\.0: .* \(0\.7\.3, 0\.7\.99\)"):
        lookup.find(replace(asked, scorer="1.0"), results)


def test_a_failed_sample_stays_failed_and_is_asked_no_one(results, no_model):
    (old,) = index.finished(results)
    journal = Path(old["directory"]) / "samples.jsonl"
    lines = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    lines[2] |= {"answer": None, "error": "out of memory"}
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert score(results) == 0
    (new,) = index.finished(results)
    assert new["n_failed"] == 1 and new["failures"] == [{"doc_id": 2, "error": "out of memory"}]


def test_what_cannot_be_scored_is_said_in_one_line(results, no_model, capsys):
    assert score(results, "ratio=0.5") == 1
    assert "no finished cell of this request below" in capsys.readouterr().err
    assert score(results, "force=true") == 2
    assert "asks no model, so force has nothing to ask again" in capsys.readouterr().err
    (old,) = index.finished(results)
    journal = Path(old["directory"]) / "samples.jsonl"
    text = journal.read_text(encoding="utf-8")
    journal.write_text(text.replace("What", "Which"), encoding="utf-8")
    assert score(results) == 1
    told = capsys.readouterr().err.strip().splitlines()
    assert "words its questions otherwise now" in told[-1]
    (kept,) = index.finished(results)
    assert kept == old  # nothing was written over


def test_rows_that_were_never_asked_are_not_taken_for_wrong(results, no_model, capsys):
    (old,) = index.finished(results)
    journal = Path(old["directory"]) / "samples.jsonl"
    lines = journal.read_text(encoding="utf-8").splitlines(keepends=True)
    journal.write_text("".join(lines[:-1]), encoding="utf-8")
    assert score(results) == 1
    assert "sample 5 was never asked" in capsys.readouterr().err
