"""Keeps one job going: starts its worker again when it dies, sets a cell aside that kills it.

A process of its own, without torch, so that running out of memory takes the worker and not this.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from vtprune import places
from vtprune.harness.request import terminal
from vtprune.harness.sweep import plan as plans
from vtprune.harness.sweep.outcomes import FAILED, RUNNING, Outcomes
from vtprune.harness.sweep.worker import SOME_FAILED, log_of

CRASHES = 2  # workers that may die on one cell before it counts as failed
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
REQUEUE = 75  # exit status of a supervisor that was told to make room: run the job again


class Stopped(Exception):
    """SLURM wants the node back, or the time is over."""


def supervise(folder: Path, job: int) -> int:
    """Run workers until the job is settled: 0 if all cells are done, 1 if some failed."""
    plan = plans.load(folder)
    while True:
        process = _start(folder, job)
        try:
            status = process.wait()
        except BaseException:
            _end(process)
            raise
        if status in (0, SOME_FAILED):
            return int(status == SOME_FAILED)
        _blame(plan, job, process.pid, status)


def _start(folder: Path, job: int) -> subprocess.Popen:
    return subprocess.Popen(
        places.module("harness.sweep.worker", str(folder), str(job)),
        env=places.environment(),
        preexec_fn=_prepare,
    )


def _prepare() -> None:
    """In the new worker, before it begins."""
    # SLURM sends its warning to every process of a step; the worker and what it starts would die
    # of it. The supervisor decides.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    # A worker whose supervisor was killed goes too: the job's next start does its work.
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def _end(process: subprocess.Popen) -> None:
    process.kill()  # every answered sample is on disk already
    process.wait()


def _blame(plan: plans.Plan, job: int, pid: int, status: int) -> None:
    """Note on which cell a worker died; after some deaths the cell is a failed one."""
    how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    outcomes = Outcomes(plan.folder)
    for place in plan.jobs[job]:
        entry = outcomes.get(place)
        if entry and entry["state"] == RUNNING and entry["pid"] == pid:
            count = outcomes.crashed(place)
            print(f"[{plan.items[place].number}] worker died ({how})", file=sys.stderr, flush=True)
            if count >= CRASHES:
                error = f"{count} workers died on it ({how}; out of memory?)"
                outcomes.note(place, FAILED, error=error, log=log_of(plan.items[place]))
            return
    raise SystemExit(f"error: the worker of job {job} died before its first cell ({how})")


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m vtprune.harness.sweep.supervisor FOLDER JOB``."""
    terminal.show_what_can_be_shown()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("job", type=int)
    options = parser.parse_args(argv)

    def stop(*_: object) -> None:
        raise Stopped

    signal.signal(signal.SIGUSR2, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        return supervise(options.folder, options.job)
    except Stopped:
        return REQUEUE


if __name__ == "__main__":
    sys.exit(main())
