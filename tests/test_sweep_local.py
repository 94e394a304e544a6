"""`hydra/launcher=joblib`: some processes at a time, and all of them end when the sweep does."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from vtprune.harness.request.errors import ConfigError
from vtprune.harness.sweep import local

SLEEPS = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"


def sleeping(folder: Path):
    """A job that sleeps for a minute and first writes down the number of its process."""

    def run(jobs: local.Jobs, number: int) -> None:
        jobs.run([sys.executable, "-c", SLEEPS], folder / f"{number}.log")

    return run


def pids(folder: Path) -> list[int]:
    texts = [file.read_text(encoding="utf-8") for file in folder.glob("*.log")]
    return [int(text) for text in texts if text.strip()]


def tell_when_two_run(folder: Path, number: int) -> None:
    def watch() -> None:
        until = time.monotonic() + 20
        while len(pids(folder)) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=watch, daemon=True).start()


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_sweep_that_is_told_to_stop_ends_its_processes_and_starts_no_other(
    tmp_path, number, raised
):
    begun = time.monotonic()
    tell_when_two_run(tmp_path, number)
    with pytest.raises(raised):
        local.run_all(sleeping(tmp_path), n=5, threads=2)
    assert time.monotonic() - begun < 30
    assert len(pids(tmp_path)) == 2
    for pid in pids(tmp_path):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_process_that_does_not_listen_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "GRACE_S", 0.3)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPS
    jobs = local.Jobs()
    thread = threading.Thread(
        target=lambda: jobs.run([sys.executable, "-c", deaf], tmp_path / "0.log")
    )
    thread.start()
    until = time.monotonic() + 20
    while not pids(tmp_path) and time.monotonic() < until:
        time.sleep(0.05)
    jobs.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert jobs.run(["true"], tmp_path / "1.log") is None, "after the end nothing begins"


def test_an_error_in_one_job_is_not_lost(tmp_path):
    def run(jobs: local.Jobs, number: int) -> None:
        if number == 1:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        local.run_all(run, n=3, threads=1)


def test_the_exit_status_of_a_process_comes_back(tmp_path):
    assert local.Jobs().run([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "log") == 3


@pytest.mark.parametrize(("n_jobs", "threads"), [(3, 3), (None, 1), (-1, 8), (-2, 7), (-99, 1)])
def test_negative_numbers_count_back_from_the_cpus(monkeypatch, n_jobs, threads):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert local.at_once(n_jobs) == threads


@pytest.mark.parametrize("wrong", [0, "two", 1.5, True])
def test_other_numbers_are_one_line(wrong):
    with pytest.raises(ConfigError, match="n_jobs must be a whole number"):
        local.at_once(wrong)
