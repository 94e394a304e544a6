"""Whole sweeps through every launcher of this machine: skipping, failing, dying, coming back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import checkpoint_tools
from vtprune.harness import cli
from vtprune.harness.sweep import status

SAMPLES = 10
LOCAL = {
    "basic": [],
    "joblib": [],
    "submitit_local": [],
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return checkpoint_tools.save(tmp_path_factory.mktemp("tiny"))


class Done:
    """What a command printed, and its exit status."""

    def __init__(self, returncode, shown):
        self.returncode, (self.stdout, self.stderr) = returncode, shown


@pytest.fixture
def run(checkpoint, tmp_path, capsys, monkeypatch):
    """Runs the command line in this process; what the launcher starts are processes."""

    def go(*arguments, drill=False):
        common = [f"model.path={checkpoint}", f"paths.results={tmp_path}", "model.threads=1",
                  f"data.samples={SAMPLES}", "decoding.max_new_tokens=2", "batch_size=2",
                  "method=custom"]  # fmt: skip
        with monkeypatch.context() as context:
            if drill:
                context.setenv("DRILL", "1")
            return Done(cli.main([*arguments, *common]), capsys.readouterr())

    return go


def stored(results):
    files = results.glob("runs/*/*/*/result.json")
    return {
        result["ratio"]: result
        for result in map(json.loads, (f.read_text(encoding="utf-8") for f in files))
    }


def traces(results):
    """What a launcher leaves behind when it starts anything."""
    return {f for pattern in ("logs", ".submitit", "slurm-job", "job.sh")
            for f in results.glob(f"multirun/*/*/{pattern}")}  # fmt: skip


@pytest.mark.parametrize("launcher", LOCAL)
def test_a_finished_cell_is_skipped_and_a_broken_one_listed(launcher, run, tmp_path):
    drill = ["method._target_=tests.slurm.methods.Drill"]
    assert run(*drill, "ratio=0.5").returncode == 0
    ((_, before),) = stored(tmp_path).items()
    sweep = ["-m", *drill, f"hydra/launcher={launcher}", *LOCAL[launcher]]
    first = run(*sweep, "ratio=0.5,0.95,0.2,0.3")
    assert first.returncode == 1
    assert "1 of 4 cells are finished already" in first.stdout
    assert "sweep: 4 cells, 3 done (1 before), 1 failed" in first.stdout
    (line,) = [x for x in first.stderr.splitlines() if x.startswith("failed: ")]
    assert line.startswith("failed: [1] ratio=0.95: ") and "this ratio is broken" in line
    assert Path(line.partition("(log: ")[2].rstrip(")")).is_file()
    found = stored(tmp_path)
    assert sorted(found) == [0.2, 0.3, 0.5] and found[0.5]["finished"] == before["finished"]
    assert [s.name for s in status.cells(status.newest(tmp_path))].count("failed") == 1

    left = traces(tmp_path)
    second = run(*sweep, "ratio=0.5,0.2,0.3")
    assert second.returncode == 0, second.stderr
    verb = "run" if launcher == "basic" else "submit"
    assert f"3 of 3 cells are finished already: nothing to {verb}" in second.stdout
    assert traces(tmp_path) == left, "nothing was started"
    assert {r: s["finished"] for r, s in stored(tmp_path).items()} == {
        r: s["finished"] for r, s in found.items()
    }


def test_a_cell_that_killed_its_workers_goes_on_at_the_next_fill(run, tmp_path):
    sweep = ["-m", "hydra/launcher=joblib", "method._target_=tests.slurm.methods.Mortal",
             "+method.at=5", "ratio=0.5"]  # fmt: skip
    first = run(*sweep, drill=True)
    assert first.returncode == 1, first.stdout
    assert "2 workers died on it (signal SIGKILL" in first.stderr and "(log: " in first.stderr
    assert "the same command runs the failed ones again" in first.stdout
    (journal,) = tmp_path.glob("runs/*/*/*/samples.jsonl")
    answered = [
        json.loads(line)["doc_id"] for line in journal.read_text(encoding="utf-8").splitlines()
    ]
    assert len(answered) == len(set(answered)) == 8, "four by each of two workers"
    (state,) = status.cells(status.newest(tmp_path))
    assert (state.name, state.answered) == ("failed", 8)

    second = run(*sweep)
    assert second.returncode == 0, second.stderr
    (result,) = stored(tmp_path).values()
    assert (result["resumed_after"], result["n_samples"], result["n_failed"]) == (8, SAMPLES, 0)
    assert [s.name for s in status.cells(status.newest(tmp_path))] == ["done"]


def test_failed_samples_are_asked_again_on_request_and_the_others_kept(run, tmp_path):
    cell = ["method._target_=tests.slurm.methods.Moody", "ratio=0.5"]
    assert run(*cell, drill=True).returncode == 0
    (result,) = stored(tmp_path).values()
    assert (result["n_samples"], result["n_failed"]) == (SAMPLES, 2)
    again = run("-m", *cell)
    assert "nothing to run" in again.stdout and "1 of them have failed samples" in again.stdout
    third = run("-m", *cell, "force=failed")
    assert third.returncode == 0, third.stderr
    (whole,) = stored(tmp_path).values()
    assert (whole["n_failed"], whole["resumed_after"]) == (0, SAMPLES - 2)
    (journal,) = tmp_path.glob("runs/*/*/*/samples.jsonl")
    assert len(journal.read_text(encoding="utf-8").splitlines()) == SAMPLES
    (aside,) = tmp_path.glob("runs/*/*/*/previous-*/result.json")
    assert json.loads(aside.read_text(encoding="utf-8"))["n_failed"] == 2
    assert "nothing to run" in run("-m", *cell, "force=failed").stdout


def test_an_unknown_value_of_force_is_refused(run):
    done = run("method._target_=tests.slurm.methods.Drill", "ratio=0.5", "force=faild")
    assert done.returncode == 2 and "force must be false, true, failed or stale" in done.stderr
