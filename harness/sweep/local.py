"""Jobs on this machine, some at a time: a thread waits for the process of each.

A pool of processes would lose the others' work with one death. Whoever tells the sweep to stop
stops its processes too: an interrupt, or SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vtprune import places
from vtprune.harness.request.errors import ConfigError
from vtprune.harness.sweep.worker import JOB_LOG

GRACE_S = 10.0  # for a supervisor to end its worker; then it is killed, and the worker with it


def at_once(n_jobs: Any) -> int:
    """``n_jobs`` as a number of threads; negative ones count back from the number of CPUs.

    Raises:
        ConfigError: 0, or no whole number.
    """
    if n_jobs is None:
        return 1
    if not isinstance(n_jobs, int) or isinstance(n_jobs, bool) or n_jobs == 0:
        raise ConfigError(f"hydra.launcher.n_jobs must be a whole number, not 0: got {n_jobs!r}")
    return n_jobs if n_jobs > 0 else max(1, (os.cpu_count() or 1) + 1 + n_jobs)


class Jobs:
    """The processes that run now; after :meth:`stop` no other one is started."""

    def __init__(self) -> None:
        self.stopped = False
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(self, command: Sequence[str], log: Path) -> int | None:
        """Exit status of the command, its output in ``log``; None if the sweep was stopped."""
        with log.open("ab") as file:
            with self._lock:
                if self.stopped:
                    return None
                process = subprocess.Popen(
                    command, stdout=file, stderr=subprocess.STDOUT,
                    env={**places.environment(), JOB_LOG: str(log)},
                )  # fmt: skip
                self._running.add(process)
            status = process.wait()
        with self._lock:
            self._running.discard(process)
        return None if self.stopped else status

    def stop(self) -> None:
        """End all processes."""
        with self._lock:
            self.stopped, running = True, list(self._running)
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def run_all(run: Any, n: int, threads: int) -> None:
    """Call ``run(jobs, number)`` for the numbers below ``n``, some at a time.

    Raises:
        SystemExit: SIGTERM was received; like an interrupt, it ends the processes first.
    """
    jobs = Jobs()
    with _terminable(), ThreadPoolExecutor(threads) as pool:
        calls = [pool.submit(run, jobs, number) for number in range(n)]
        try:
            for call in calls:
                call.result()
        except BaseException:
            jobs.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM raise SystemExit inside the block, where nobody else has a use for it."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
