"""Leases: one holder at a time, whatever dies, sleeps or comes late."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from vtprune.harness.store import lease


def _age(folder, seconds):
    """Move the renewal of the newest lease into the past, and make its holder unknowable."""
    file = max(folder.glob("lease.*"), key=lambda f: int(f.suffix[1:]))
    owner = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**owner, "host": "elsewhere", "slurm": None}), encoding="utf-8")
    past = time.time() - seconds
    os.utime(file, (past, past))


def test_a_held_cell_is_refused_and_a_released_one_is_not(tmp_path):
    held = lease.acquire(tmp_path)
    with pytest.raises(lease.Busy, match="computed right now by process"):
        lease.acquire(tmp_path)
    assert lease.holder(tmp_path)["pid"] == os.getpid()
    held.release(False)
    assert lease.holder(tmp_path) is None
    lease.acquire(tmp_path).release(False)


def test_numbers_never_come_twice_until_the_cell_is_finished(tmp_path):
    for number in (1, 2, 3):
        held = lease.acquire(tmp_path)
        assert held.number == number
        held.release(False)
    (tmp_path / "result.json").write_text("{}", encoding="utf-8")
    lease.acquire(tmp_path).release(finished=True)
    assert [f.name for f in tmp_path.iterdir()] == ["result.json"]


def test_only_an_expired_lease_of_another_machine_is_taken_over(tmp_path):
    first = lease.acquire(tmp_path, expiry=600)
    _age(tmp_path, 500)
    with pytest.raises(lease.Busy):
        lease.acquire(tmp_path, expiry=600)
    _age(tmp_path, 700)
    second = lease.acquire(tmp_path, expiry=600)
    assert second.number == 2
    with pytest.raises(lease.Lost, match="took this cell over"):
        first.check()
    second.check()
    first.release(False)
    second.check()
    assert lease.holder(tmp_path, 600) is not None
    second.release(False)


@pytest.mark.parametrize("job", [None, "77"])
def test_a_killed_holder_on_this_machine_is_noticed_at_once(tmp_path, monkeypatch, job):
    if job:  # a worker that its supervisor starts again within one start of the job
        monkeypatch.setenv("SLURM_JOB_ID", job)
    code = "import sys, time; from pathlib import Path; from vtprune.harness.store import lease\n"
    code += "lease.acquire(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    child.stdout.readline()
    with pytest.raises(lease.Busy):
        lease.acquire(tmp_path)
    child.kill()
    child.wait()
    lease.acquire(tmp_path).release(False)


def test_the_next_start_of_a_slurm_job_takes_over_its_own_lease(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    first = lease.acquire(tmp_path)
    with pytest.raises(lease.Busy, match="SLURM job 77"):
        lease.acquire(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    second = lease.acquire(tmp_path)
    with pytest.raises(lease.Lost):
        first.check()
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    with pytest.raises(lease.Busy):
        lease.acquire(tmp_path)
    second.release(False)
    first.release(False)


def test_a_lease_is_renewed_while_it_is_held(tmp_path):
    held = lease.acquire(tmp_path, expiry=0.6)
    time.sleep(1.2)
    assert lease.holder(tmp_path, 0.6) is not None
    held.check()
    held.release(False)


def test_a_lease_that_is_still_being_written_is_held(tmp_path):
    (tmp_path / "lease.1").touch()
    with pytest.raises(lease.Busy):
        lease.acquire(tmp_path)


def _contend(folder, barrier, results):
    barrier.wait()
    won = []
    while len(won) < 5:
        try:
            held = lease.acquire(folder)
        except lease.Busy:
            continue
        # Alone in here: a second process would find the file and fail.
        descriptor = os.open(folder / "inside", os.O_CREAT | os.O_EXCL)
        os.close(descriptor)
        won.append(held.number)
        time.sleep(0.002)
        os.unlink(folder / "inside")
        held.release(False)
    results.put(won)


def test_many_processes_never_hold_it_together(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    workers = [
        context.Process(target=_contend, args=(tmp_path, barrier, results)) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    won = [number for _ in workers for number in results.get(timeout=60)]
    for worker in workers:
        worker.join()
    assert all(worker.exitcode == 0 for worker in workers)
    assert sorted(won) == list(range(1, 21))


def test_of_two_that_saw_it_free_only_one_gets_it(tmp_path, monkeypatch):
    held, real = lease.acquire(tmp_path), lease._highest
    looks = iter([lambda folder: 0])  # what the other one saw before the first came
    monkeypatch.setattr(lease, "_highest", lambda folder: next(looks, real)(folder))
    with pytest.raises(lease.Busy):
        lease.acquire(tmp_path)
    held.check()
    held.release(False)
