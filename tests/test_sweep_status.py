"""What a submitted sweep does, told alike by `submit.py --status` and `tables.py ... status`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import command_tools, stored
from tests import table_tools as tools
from vtprune.harness import cli
from vtprune.harness.reporting.tables import command, lookup, spec
from vtprune.harness.store import lease
from vtprune.harness.sweep import outcomes as outcomes_module
from vtprune.harness.sweep import plan as plans
from vtprune.harness.sweep import status
from vtprune.harness.sweep.outcomes import DONE, FAILED, RUNNING, Outcomes

ROOT = Path(__file__).resolve().parent.parent
TABLE, SMALL = "mini_table2", {"bench.limit": 2, "data.samples": 8}
GIVEN = [f"{key}={value}" for key, value in SMALL.items()]
SBATCH = "#!/bin/sh\necho 4711\n"


@pytest.fixture(scope="module")
def submitted(tmp_path_factory):
    """The table as a job array that a stand-in for sbatch took: (results, plan)."""
    folder = tmp_path_factory.mktemp("submitted")
    sbatch = folder / "bin/sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(SBATCH, encoding="utf-8")
    sbatch.chmod(0o755)
    results = folder / "results"
    with pytest.MonkeyPatch.context() as context:
        context.setenv("PATH", f"{sbatch.parent}:{os.environ['PATH']}")
        assert cli.main(["-m", "hydra/launcher=slurm_array", f"experiment={TABLE}", *GIVEN,
                         f"paths.results={results}", "sweep.cells_per_job=8"]) == 0  # fmt: skip
    return results, plans.load(status.newest(results))


def begun(item, answers):
    """A cell's folder as a worker leaves it."""
    folder = Path(item.directory)
    folder.mkdir(parents=True)
    lines = [json.dumps({"doc_id": n, "error": None}) + "\n" for n in range(answers)]
    (folder / "samples.jsonl").write_text("".join(lines), encoding="utf-8")
    identity = tools.identity(wanted(item))
    content = {"identity": identity, "config": item.config}
    (folder / "cell.yaml").write_text(json.dumps(content), encoding="utf-8")
    return folder


def wanted(item):
    """The cell of the table that an item of the plan is."""
    config = item.config
    (cell,) = (
        c for c in spec.load(TABLE, SMALL).cells()
        if c.bench == item.bench and c.row.method == config["method"]["name"]
        and c.config["seed"] == config["seed"]
    )  # fmt: skip
    return cell


@pytest.fixture(scope="module")
def mixed(submitted):
    """One cell of each kind, the rest waiting; the lease that is held."""
    results, plan = submitted
    outcomes = Outcomes(plan.folder)
    outcomes.note(0, RUNNING)
    held = lease.acquire(begun(plan.items[0], 1))
    outcomes.note(1, FAILED, error="RuntimeError: out of memory", log="/some/where/log.txt")
    outcomes.note(2, RUNNING)
    begun(plan.items[2], 2)
    outcomes.note(3, DONE, result={"score": 50.0})
    done = tools.put(results, wanted(plan.items[3]), tools.right_wrong(0.5))
    (done / "cell.yaml").write_text(json.dumps({"config": plan.items[3].config}), encoding="utf-8")
    yield results, plan
    held.release(False)


def test_both_commands_say_the_same_of_every_cell(mixed):
    results, plan = mixed
    states = status.cells(plan.folder)
    told = {label(wanted(item)): s for item, s in zip(plan.items, states, strict=True)}
    names = [state.name for state in told.values()]
    assert names[:4] == ["running", "failed", "interrupted", "done"]
    assert set(names[4:]) == {"waiting"} and len(names) == 21
    same = {"running": lookup.RUNNING, "failed": lookup.FAILED, "interrupted": lookup.FAILED,
            "done": lookup.DONE, "waiting": lookup.MISSING}  # fmt: skip
    found = lookup.find(spec.load(TABLE, SMALL), results)
    assert len(found) == 21
    for cell in found:
        state = told[label(cell.wanted)]
        assert cell.status == same[state.name], cell.wanted.arguments
        assert state.reason in cell.reason and (state.log or "") in cell.reason
        if state.name != "done":
            assert cell.answered == state.answered


def label(cell):
    return cell.bench, cell.row.method, cell.config["seed"]


def test_the_table_tells_reasons_logs_and_jobs(mixed):
    results, _ = mixed
    request = command.parse([f"table={TABLE}", *GIVEN, f"results={results}"])
    text = command.status(request)
    assert "cells: 1 done, 2 failed, 17 missing, 1 running" in text
    assert "RuntimeError: out of memory (log: /some/where/log.txt)" in text
    assert "stopped before it was finished; in SLURM job 4711_0" in text
    line = ["scripts/submit.py", "--status", "--results", str(results)]
    done = command_tools.run(*line, loaded=command_tools.CLI)
    assert done.returncode == status.NOT_FINISHED, done.stderr
    assert "1 done, 1 running, 1 failed, 1 interrupted, 17 waiting" in done.stdout
    assert "no worker came to it yet; in SLURM job 4711_2" in done.stdout
    assert "RuntimeError: out of memory  (log: /some/where/log.txt)" in done.stdout
    assert len(done.stdout.splitlines()) == 22


def test_a_cell_that_a_later_sweep_finished_is_done_for_the_earlier_one_too(mixed):
    _, plan = mixed
    assert status.cell(plan, 1).name == "failed"
    folder = Path(plan.items[1].directory)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(stored.result()), encoding="utf-8")
    assert status.cell(plan, 1).name == "done"


def test_status_works_where_the_store_may_only_be_read(tmp_path, monkeypatch):
    held = lease.acquire(tmp_path)

    def refuse(*_, **__):
        raise PermissionError(13, "read-only")

    monkeypatch.setattr(Path, "touch", refuse)
    assert lease.holder(tmp_path)["pid"] == os.getpid()
    monkeypatch.undo()
    held.release(False)


def test_a_lease_lasts_as_long_as_its_holder_said(tmp_path):
    held = lease.acquire(tmp_path, expiry=600)
    owner = json.loads((tmp_path / "lease.1").read_text(encoding="utf-8"))
    (tmp_path / "lease.1").write_text(json.dumps({**owner, "host": "elsewhere"}), encoding="utf-8")
    past = (tmp_path / "lease.1").stat().st_mtime - 300
    os.utime(tmp_path / "lease.1", (past, past))
    assert lease.holder(tmp_path, expiry=120) is not None
    with pytest.raises(lease.Busy):
        lease.acquire(tmp_path, expiry=120)
    held.release(False)


def test_a_worker_that_still_prepares_its_cell_is_running_until_it_dies(tmp_path):
    """It reads a checkpoint for minutes, say, before it takes the lease of the cell."""
    config = {"task": "cell", "force": False}
    item = plans.Item(0, "cell 0", "gqa", config, {}, "k", str(tmp_path / "not/there/yet"))
    plan = plans.Plan(tmp_path, (item,), ((0,),))
    code = "import sys, time; from pathlib import Path; from vtprune.harness.store import lease\n"
    code += "from vtprune.harness.sweep.outcomes import RUNNING, Outcomes\n"
    code += "Outcomes(Path(sys.argv[1])).note(0, RUNNING, owner=lease.myself())\n"
    code += "print('noted', flush=True); time.sleep(60)"
    worker = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
    worker.stdout.readline()
    assert status.cell(plan, 0).name == "running"
    worker.kill()
    worker.wait()
    assert status.cell(plan, 0).name == "interrupted"


def test_a_worker_on_another_machine_is_running_while_it_gives_signs(tmp_path, monkeypatch):
    monkeypatch.setattr(outcomes_module, "BEAT", 0.05)
    outcomes = Outcomes(tmp_path)
    outcomes.note(0, RUNNING, owner={**lease.myself(), "host": "elsewhere"})
    past = outcomes.file(0).stat().st_mtime - 300
    os.utime(outcomes.file(0), (past, past))
    assert not outcomes.alive(0)
    with outcomes.beating(0):
        deadline = time.monotonic() + 10
        while not outcomes.alive(0):
            assert time.monotonic() < deadline
            time.sleep(0.02)
