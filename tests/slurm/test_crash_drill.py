"""Everything that happens to jobs on a cluster, at once, on a real SLURM.

Eight cells in four jobs without a living parent. A worker and a supervisor are killed, a job runs
out of time, one is preempted, the controller is restarted, and one cell is broken. At the end seven
cells are done, each sample answered once, and the broken one is reported.
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
from vtprune.harness.sweep import plan, status
from vtprune.harness.sweep.outcomes import Outcomes

ROOT = Path(__file__).resolve().parents[2]
RATIOS = "0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.95"  # two of a job; see tests.slurm.methods
SAMPLES = 24
MEMORY = 40000  # of the node's 65536 MB
LIMIT = 175.0

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]


class Drill:
    """The sweep under test and what can be done to it."""

    def __init__(self, environment, folder) -> None:
        self.environment, self.results = environment, folder / "results"
        self.common = sweeps.arguments(folder, SAMPLES)
        self.began = time.monotonic()
        self.twice: list[str] = []

    def submit(self) -> None:
        done = self.call(
            sys.executable, ROOT / "scripts/submit.py", *self.common, f"ratio={RATIOS}",
            "+method.delay=0.3", f"paths.results={self.results}", "sweep.cells_per_job=2",
            "+hydra.launcher.additional_parameters.hold=null", "hydra.launcher.cpus_per_task=1",
            "hydra.launcher.timeout_min=10", "hydra.launcher.signal_delay_s=20",
        )  # fmt: skip
        assert "submitted: SLURM job" in done
        self.folder = status.newest(self.results)
        self.outcomes = Outcomes(self.folder)
        self.array = (self.folder / "slurm-job").read_text(encoding="utf-8").strip()

    def call(self, *command) -> str:
        done = subprocess.run(
            [str(part) for part in command], env=self.environment, cwd=ROOT, text=True,
            capture_output=True, timeout=60, check=False, encoding="utf-8",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def journals(self) -> dict[str, list[int]]:
        """Samples per cell as they lie in the journals now; a sample there twice is remembered."""
        found = {}
        for file in self.results.glob("runs/*/*/*/samples.jsonl"):
            lines = [
                ln for ln in file.read_text(encoding="utf-8").splitlines(True) if ln.endswith("\n")
            ]
            found[file.parent.name] = rows = [json.loads(line)["doc_id"] for line in lines]
            if len(rows) != len(set(rows)):
                self.twice.append(file.parent.name)
        return found

    def until(self, what, condition):
        """Wait for a condition, looking at the journals all the while."""
        while not (found := condition()):
            self.journals()
            assert time.monotonic() - self.began < LIMIT, f"{what}: {self.told()}"
            time.sleep(0.2)
        return found

    def working(self, job) -> int | None:
        """The process at work on a job's cell of which something is answered but not all."""
        journals = self.journals()
        for place in (2 * job, 2 * job + 1):
            entry, item = self.outcomes.get(place), plan.load(self.folder).items[place]
            rows = journals.get(Path(item.directory).name, [])
            if entry and entry["state"] == "running" and 0 < len(rows) < SAMPLES - 4:
                return entry["pid"]
        return None

    def settled(self) -> bool:
        return all(self.outcomes.settled(place) for place in range(8))

    def restarts(self, task) -> int:
        shown = self.call("scontrol", "-o", "show", "job", f"{self.array}_{task}")
        return int(shown.partition("Restarts=")[2].split()[0])

    def told(self) -> str:
        logs = [
            f"{f.name}: {f.read_text(encoding='utf-8')[-500:]}" for f in self.folder.glob("logs/*")
        ]
        return f"{status.cells(self.folder)}\n{self.call('squeue')}\n" + "\n".join(logs)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])


def test_crash_drill(slurm, tmp_path, capsys):
    drill = Drill(slurm, tmp_path)
    drill.submit()
    # Only the last job may be driven out, and the third one has no more than a minute.
    last = f"JobId={drill.array}_3"
    drill.call("scontrol", "update", last, "Partition=low", f"MinMemoryNode={MEMORY}")
    drill.call("scontrol", "update", f"JobId={drill.array}_2", "TimeLimit=1")
    drill.call("scontrol", "release", drill.array)

    drill.until("job 3 works", lambda: drill.working(3))
    # It asks for the memory that the last job holds, so that it cannot run beside it.
    drill.call("sbatch", "-p", "high", f"--mem={MEMORY}", "-o", "/dev/null", "--wrap", "sleep 3")
    os.kill(drill.until("job 0 works", lambda: drill.working(0)), signal.SIGKILL)
    drill.until("job 3 is preempted", lambda: drill.restarts(3))
    supervisor = _parent(drill.until("job 1 works", lambda: drill.working(1)))
    os.kill(supervisor, signal.SIGKILL)
    drill.call(ROOT / "scripts/slurm_local.sh", "restart-controller")
    drill.until("job 2 runs out of time", lambda: drill.restarts(2) > 0)
    drill.call("scontrol", "update", f"JobId={drill.array}_2", "TimeLimit=10")

    drill.until("all cells are settled", drill.settled)
    drill.journals()
    took = time.monotonic() - drill.began
    restarts = [drill.restarts(task) for task in range(4)]
    _check_result(drill, restarts)
    with capsys.disabled():
        print(f"\ncrash drill: {took:.0f} s, 2 kills, restarts by job {restarts}, "
              f"samples answered twice {len(drill.twice)}")  # fmt: skip
    _compare_with_undisturbed(drill)


def _check_result(drill: Drill, restarts: list[int]) -> None:
    assert drill.twice == []
    cells = status.cells(drill.folder)
    assert [c.name for c in cells] == ["done"] * 7 + ["failed"]
    assert "samples all failed" in cells[7].reason and "ratio is broken" in cells[7].reason
    assert Path(cells[7].log).exists()
    assert status.show(drill.folder) == 1
    results = [
        json.loads(f.read_text(encoding="utf-8"))
        for f in drill.results.glob("runs/*/*/*/result.json")
    ]
    assert len(results) == 7
    assert all((r["n_samples"], r["n_failed"]) == (SAMPLES, 0) for r in results)
    assert all(sorted(rows) == list(range(SAMPLES))
               for name, rows in drill.journals().items() if "0.95" not in name)  # fmt: skip
    assert sum(r["resumed_after"] > 0 for r in results) >= 3, "nobody was interrupted"
    # A killed worker is started again within its job; killed, out of time and preempted are not.
    assert restarts[0] == 0 and all(1 <= n <= 2 for n in restarts[1:]), restarts
    assert not list(drill.results.glob("runs/*/*/*0.[2-8]-*/lease.*"))


def _compare_with_undisturbed(drill: Drill) -> None:
    """The same cells in one quiet process give the same answers."""
    calm = drill.results.with_name("calm")
    drill.call(sys.executable, ROOT / "run.py", "-m", *drill.common, "ratio=0.2,0.4,0.6",
               "+method.delay=0", f"paths.results={calm}")  # fmt: skip
    for file in calm.glob("runs/*/*/*/samples.jsonl"):
        (other,) = drill.results.glob(f"runs/*/*/{file.parent.name[:-9]}-*/samples.jsonl")
        assert _answers(file) == _answers(other)


def _answers(file: Path) -> dict[int, str]:
    return {
        e["doc_id"]: e["answer"]
        for e in map(json.loads, file.read_text(encoding="utf-8").splitlines())
    }
