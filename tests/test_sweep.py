"""Sweeps: division into jobs, workers that fail, wait and die, and the launchers around them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys

import pytest

from tests import checkpoint_tools
from vtprune import places
from vtprune.harness import cli
from vtprune.harness.cell import progress as display
from vtprune.harness.store import lease
from vtprune.harness.sweep import outcomes, plan, slurm, supervisor, worker


def item(number, model="a", bench="textvqa", key=None):
    config = {"model": {"name": model}, "task": "cell"}
    return plan.Item(number, f"cell {number}", bench, config, {}, key or f"k{number}")


def a_plan(folder, items, jobs=None):
    jobs = jobs or plan.divide(items, "model", 16)
    made = plan.Plan(folder, tuple(items), tuple(jobs))
    made.save()
    return made


def test_cells_of_one_model_share_a_job_and_benchmarks_follow_each_other():
    items = [item(n, model, bench) for n, (model, bench) in enumerate(
        [("a", "x"), ("b", "x"), ("a", "y"), ("b", "y"), ("a", "x")])]  # fmt: skip
    assert plan.divide(items, "model", 16) == [(0, 4, 2), (1, 3)]
    assert plan.divide(items, "model", 2) == [(0, 4), (2,), (1, 3)]
    assert plan.divide(items, "none", 1) == [(0,), (1,), (2,), (3,), (4,)]
    sizes = [len(job) for job in plan.divide([item(n) for n in range(33)], "model", 16)]
    assert sizes == [11, 11, 11]
    with pytest.raises(Exception, match="group_by must be one of"):
        plan.divide(items, "bench", 1)


def test_a_plan_is_read_back_and_never_replaced(tmp_path):
    made = a_plan(tmp_path, [item(0), item(1)])
    assert plan.load(tmp_path).items == made.items and plan.load(tmp_path).jobs == made.jobs
    with pytest.raises(Exception, match="already holds a sweep"):
        made.save()
    assert [i.number for i in plan.without_copies([item(0, key="k"), item(1, key="k")])] == [0]


def test_a_failing_cell_is_noted_and_the_next_one_runs(tmp_path):
    made = a_plan(tmp_path, [item(0), item(1)])

    def run(one):
        if one.number == 0:
            raise RuntimeError("no such luck")
        return {"key": one.key}

    assert worker.work(made, (0, 1), run) == worker.SOME_FAILED
    known = outcomes.Outcomes(tmp_path)
    assert known.get(0)["state"] == "failed" and "no such luck" in known.get(0)["error"]
    assert known.get(1)["state"] == "done" and known.get(1)["result"] == {"key": "k1"}
    asked = []
    assert worker.work(made, (0, 1), asked.append) == worker.SOME_FAILED
    assert asked == [], "settled cells are not run again"


def test_a_cell_somebody_else_computes_comes_last(tmp_path, monkeypatch):
    made, order = a_plan(tmp_path, [item(0), item(1)]), []
    monkeypatch.setattr(worker, "POLL", 0.01)

    def run(one):
        order.append(one.number)
        if order.count(0) < 3 and one.number == 0:
            raise lease.Busy("elsewhere")
        return {"key": one.key}

    assert worker.work(made, (0, 1), run) == 0
    assert order == [0, 1, 0, 0]


def _crash(folder, places):
    """A worker that runs itself through; on cell 1 it dies."""
    made = plan.load(folder)

    def run(one):
        if one.number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"key": one.key}

    return worker.work(made, places, run)


def test_a_cell_that_kills_its_worker_twice_fails_and_the_others_run(tmp_path, monkeypatch, capsys):
    made = a_plan(tmp_path, [item(0), item(1), item(2)])
    starts = []

    def start(folder, job):
        starts.append(job)
        code = "import sys; from pathlib import Path; from tests import test_sweep as t\n"
        code += "sys.exit(t._crash(Path(sys.argv[1]), (0, 1, 2)))"
        return supervisor.subprocess.Popen([sys.executable, "-c", code, str(folder)])

    monkeypatch.setattr(supervisor, "_start", start)
    assert supervisor.supervise(made.folder, 0) == 1
    known = outcomes.Outcomes(tmp_path)
    assert [known.get(n)["state"] for n in range(3)] == ["done", "failed", "done"]
    assert "2 workers died on it (signal SIGKILL" in known.get(1)["error"]
    assert len(starts) == 3


def test_a_worker_that_cannot_begin_does_not_loop(tmp_path, monkeypatch):
    made = a_plan(tmp_path, [item(0)])
    broken = [sys.executable, "-c", "import no_such_module"]
    monkeypatch.setattr(
        supervisor, "_start", lambda *_: supervisor.subprocess.Popen(broken, stderr=-3)
    )
    with pytest.raises(SystemExit, match="died before its first cell"):
        supervisor.supervise(made.folder, 0)


def test_the_batch_script_says_what_was_asked_for(tmp_path):
    made = a_plan(tmp_path, [item(0), item(1)], [(0,), (1,)])
    text = slurm.script(made, {
        "partition": "gpu", "gpus_per_node": 1, "timeout_min": 30, "mem_gb": 8, "name": "run",
        "array_parallelism": 4, "signal_delay_s": 60, "max_requeue": 3, "account": None,
        "setup": ["module load cuda"], "additional_parameters": {"mail-type": "END"},
    })  # fmt: skip
    for line in ("--partition=gpu", "--gpus-per-node=1", "--time=30", "--mem=8G", "--requeue\n",
                 "--array=0-1%4", "--signal=B:USR2@60", "--mail-type=END"):  # fmt: skip
        assert f"#SBATCH {line}" in text, line
    assert 'scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' in text
    assert f"export HARNESS_JOB_LOG={tmp_path}/logs/job-$SLURM_ARRAY_TASK_ID.log" in text
    assert "account" not in text and "module load cuda" in text


def test_a_job_log_gets_lines_that_programs_can_read(monkeypatch, capsys):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with display.Progress("auto", "gprune 0.9") as quiet:
        quiet.update(10, 10, 50.0)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with display.Progress("auto", "gprune 0.9") as progress:
        progress.update(1, 10, None)
        progress.update(10, 10, 50.0)
    (line,) = capsys.readouterr().err.splitlines()
    kind, *pairs = line.split()
    found = dict(pair.split("=") for pair in pairs)
    assert kind == "progress" and found["cell"] == "gprune-0.9" and found["eta_s"] == "0"
    assert (found["done"], found["total"], found["score"]) == ("10", "10", "50.0")
    with display.Progress(False, "gprune 0.9") as off:
        off.update(10, 10, 50.0)
    assert capsys.readouterr().err == ""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return checkpoint_tools.save(tmp_path_factory.mktemp("tiny"))


def sweep(checkpoint, tmp_path, *arguments):
    return cli.main([
        "-m", *arguments, f"model.path={checkpoint}", f"paths.results={tmp_path}",
        "data.samples=4", "decoding.max_new_tokens=2",
    ])  # fmt: skip


@pytest.mark.slow
def test_local_processes_finish_a_sweep_and_list_what_failed(checkpoint, tmp_path, capsys):
    arguments = ["method=none,random", "ratio=0.5,1.5", "hydra/launcher=joblib",
                 "sweep.cells_per_job=2", "model.threads=1"]  # fmt: skip
    assert sweep(checkpoint, tmp_path, *arguments) == 1
    out, err = capsys.readouterr()
    assert "sweep: 4 cells, 2 done, 2 failed" in out or "sweep: 3 cells, 2 done, 1 failed" in out
    (line,) = [x for x in err.splitlines() if "method=random ratio=1.5" in x]
    assert line.startswith("failed: [3] ") and "ratio must be" in line
    assert "/logs/job-" in line, "a cell that never began has no log but its job's"
    assert len(list(tmp_path.glob("runs/textvqa/embedded/*/result.json"))) == 2
    assert not list(tmp_path.glob("runs/textvqa/embedded/*/lease.*"))
    (log,) = tmp_path.glob("multirun/*/*/logs/job-0.log")
    assert "[0]" in log.read_text(encoding="utf-8")


def test_a_held_cell_is_refused_in_one_line(checkpoint, tmp_path, capsys):
    options = ["method=random", "ratio=0.5", f"model.path={checkpoint}", "data.samples=4",
               f"paths.results={tmp_path}", "decoding.max_new_tokens=2"]  # fmt: skip
    assert cli.main(options) == 0
    (result,) = tmp_path.glob("runs/textvqa/embedded/*/result.json")
    result.rename(result.with_name("hidden"))
    held = lease.acquire(result.parent)
    capsys.readouterr()
    assert cli.main(options) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"computed right now by process {os.getpid()}" in err
    assert not result.exists()
    held.release(False)
    assert cli.main(options) == 0
    assert json.loads(result.read_text(encoding="utf-8"))["n_samples"] == 4


@pytest.mark.parametrize("name", ["basic", "joblib", "submitit_local", "submitit_slurm",
                                  "slurm_array"])  # fmt: skip
def test_every_launcher_composes(name):
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(places.CONF), version_base="1.3"):
        config = compose("config", [f"hydra/launcher={name}"], return_hydra_config=True)
    assert config.hydra.launcher._target_.startswith("hydra_plugins.harness_launcher.")


def test_without_slurm_the_error_says_what_works_here(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert sweep(checkpoint, tmp_path, "method=none", "hydra/launcher=slurm_array") == 1
    assert "sbatch is not on the PATH" in capsys.readouterr().err


def test_values_of_this_cluster_reach_the_launchers_and_no_other_run(tmp_path):
    """What conf/local/default.yaml says of the cluster; one sweep may say otherwise."""
    from hydra import compose, initialize_config_dir

    (tmp_path / "default.yaml").write_text(
        "cluster:\n  partition: gpu\n  mem_gb: 64\n", encoding="utf-8"
    )
    shutil.copytree(places.CONF, tmp_path / "conf")
    (tmp_path / "conf/local").mkdir(exist_ok=True)
    (tmp_path / "default.yaml").rename(tmp_path / "conf/local/default.yaml")
    with initialize_config_dir(str(tmp_path / "conf"), version_base="1.3"):
        for name in ("slurm_array", "submitit_slurm"):
            given = [f"hydra/launcher={name}", "hydra.launcher.mem_gb=8"]
            config = compose("config", given, return_hydra_config=True)
            made = config.hydra.launcher
            assert (made.partition, made.mem_gb, made.timeout_min) == ("gpu", 8, 240)
        assert compose("config", [], return_hydra_config=True).hydra.launcher.keys() == {"_target_"}
