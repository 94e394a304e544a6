"""`run.py -m hydra/launcher=submitit_slurm` on a real SLURM: a parent that waits and tells the end.

Four cells in three jobs: one finished before, one loses its worker and then its job gets the
warning and is queued again, one job is killed as a whole, one cell is broken.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.slurm import sweeps
from vtprune.harness.sweep import plan as plans
from vtprune.harness.sweep import status
from vtprune.harness.sweep.outcomes import Outcomes

ROOT = Path(__file__).resolve().parents[2]
SAMPLES, LIMIT = 16, 240.0
WARNED, KILLED, BROKEN, BEFORE = 0.6, 0.8, 0.95, 0.2  # the first two take their time

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]


class Sweep:
    """The command, its parent process and what can be seen of it."""

    def __init__(self, environment, folder) -> None:
        self.environment, self.results = environment, folder / "results"
        self.common = [
            *sweeps.arguments(folder, SAMPLES), "+method.delay=0.12",
            f"paths.results={self.results}",
        ]  # fmt: skip
        self.began = time.monotonic()

    def run(self, *arguments) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "run.py", *arguments, *self.common], env=self.environment, cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        )  # fmt: skip

    def until(self, what, condition):
        while not (found := condition()):
            assert time.monotonic() - self.began < LIMIT, what
            time.sleep(0.2)
        return found

    def working(self, ratio, above=0):
        """(job of SLURM, process) at a cell with more than ``above`` answers but not all."""
        plan = plans.load(status.newest(self.results))
        (place,) = (p for p, i in enumerate(plan.items) if i.config["ratio"] == ratio)
        entry = Outcomes(plan.folder).get(place)
        answered = self.answered(ratio)
        if not entry or entry["state"] != "running" or not above < answered < SAMPLES - 2:
            return None
        return entry["slurm"], entry["pid"]

    def answered(self, ratio) -> int:
        files = list(self.results.glob(f"runs/*/*/Drill-{ratio}-*/samples.jsonl"))
        return files[0].read_text(encoding="utf-8").count("\n") if files else 0

    def stored(self):
        files = self.results.glob("runs/*/*/*/result.json")
        found = (json.loads(file.read_text(encoding="utf-8")) for file in files)
        return {result["ratio"]: result for result in found}

    def jobs(self) -> int:
        listed = subprocess.check_output(["squeue", "-h", "-t", "all"], env=self.environment)
        return len(listed.splitlines())


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])


def test_a_sweep_with_a_waiting_parent(slurm, tmp_path, capsys):
    sweep = Sweep(slurm, tmp_path)
    before = sweep.run(f"ratio={BEFORE}")
    assert before.wait(60) == 0, before.stderr.read()
    options = ["-m", "hydra/launcher=submitit_slurm", "sweep.cells_per_job=1",
               "hydra.launcher.timeout_min=5", "hydra.launcher.cpus_per_task=1"]  # fmt: skip
    ratios = [WARNED, KILLED, BROKEN, BEFORE]
    parent = sweep.run(*options, f"ratio={','.join(map(str, ratios))}")
    sweep.until("the sweep is planned", lambda: list(sweep.results.glob("multirun/**/plan.json")))

    job, worker = sweep.until("one works", lambda: sweep.working(WARNED))
    os.kill(worker, signal.SIGKILL)
    first = sweep.answered(WARNED)
    supervisor = _parent(sweep.until("the other works", lambda: sweep.working(KILLED))[1])
    os.kill(supervisor, signal.SIGKILL)
    sweep.until("the first goes on", lambda: sweep.working(WARNED, above=first))
    subprocess.run(["scancel", "--signal=USR2", job], env=slurm, check=True)

    out, err = parent.communicate(timeout=LIMIT)
    assert parent.returncode == 1, err
    assert "1 of 4 cells are finished already" in out and "jobs: " in out
    assert "sweep: 4 cells, 2 done (1 before), 2 failed" in out, out + err
    failed = {x.split()[2]: x for x in err.splitlines() if x.startswith("failed: ")}
    assert sorted(failed) == [f"ratio={KILLED}:", f"ratio={BROKEN}:"]
    assert "its job ended in the middle of it: " in failed[f"ratio={KILLED}:"]
    assert "this ratio is broken" in failed[f"ratio={BROKEN}:"]
    for line in failed.values():
        assert Path(line.partition("(log: ")[2].rstrip(")")).is_file(), line
    found = sweep.stored()
    assert sorted(found) == [BEFORE, WARNED]
    assert all(r["n_samples"] == SAMPLES and not r["n_failed"] for r in found.values())
    assert found[WARNED]["resumed_after"] > first, "it goes on where the last one stopped"
    shown = subprocess.run(["scontrol", "-o", "show", "job", job], env=slurm, text=True,
                           capture_output=True, check=True, encoding="utf-8").stdout  # fmt: skip
    assert "Restarts=1 " in shown, shown

    kept, jobs = sweep.answered(KILLED), sweep.jobs()
    assert kept > 0
    parent = sweep.run(*options, f"ratio={KILLED},{WARNED},{BEFORE}")
    out, err = parent.communicate(timeout=LIMIT)
    assert parent.returncode == 0, err
    assert "2 of 3 cells are finished already" in out and sweep.jobs() == jobs + 1
    assert sweep.stored()[KILLED]["resumed_after"] == kept
    took = time.monotonic() - sweep.began
    with capsys.disabled():
        print(f"\nsubmitit_slurm: {took:.0f} s, 1 warned, 2 killed; kept {kept} of {SAMPLES}")
