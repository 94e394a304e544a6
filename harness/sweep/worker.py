"""One process, one job: its cells one after another, the model loaded once.

A cell that fails is noted and the next one begins. A cell that another process computes is left for
later, and its result taken over from there, or its work if that process dies.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vtprune.harness.cell import ranks
from vtprune.harness.request import terminal
from vtprune.harness.request.errors import HarnessError, one_line
from vtprune.harness.request.request import Request
from vtprune.harness.store import lease
from vtprune.harness.sweep import plan as plans
from vtprune.harness.sweep.outcomes import DONE, FAILED, RUNNING, Outcomes
from vtprune.places import also_from_here

SOME_FAILED = 3  # exit status; 1 is what Python itself gives when a worker breaks
JOB_LOG = "HARNESS_JOB_LOG"  # in the environment of a job: the file its output goes to
POLL = 5.0  # seconds between two looks at a cell that somebody else computes
Runner = Callable[[plans.Item], dict[str, Any] | None]


def work(plan: plans.Plan, places: Sequence[int], run: Runner | None = None) -> int:
    """Work off the items at ``places``; 0 if all of them are done, SOME_FAILED if not."""
    run, outcomes = run or run_item, Outcomes(plan.folder)
    # The processes of a group go through the same cells, whoever of them reads the outcomes when.
    left = [place for place in places if ranks.grouped() or not outcomes.settled(place)]
    with _shared([plan.items[place].request for place in left]):
        waiting = [place for place in left if not _attempt(plan, place, run, outcomes)]
        while waiting:
            time.sleep(POLL)
            waiting = [p for p in waiting if not _attempt(plan, p, run, outcomes, again=True)]
    failed = any((outcomes.get(place) or {}).get("state") == FAILED for place in places)
    return SOME_FAILED if failed else 0


@contextlib.contextmanager
def _shared(requests: Sequence[Request]) -> Iterator[None]:
    """Vision features shared by the cells of a job, where there are several and it is wanted."""
    answering = [request for request in requests if request.task == "cell"]
    if len(answering) < 2 or not requests[0].sweep.share_vision:
        yield
        return
    from vtprune.harness.cell.sharing import shared

    with shared(requests[0].sweep.share_gb):
        yield


def _attempt(
    plan: plans.Plan, place: int, run: Runner, outcomes: Outcomes, again: bool = False
) -> bool:
    """Run one cell and note what came out; False if somebody else is at it."""
    item = plan.items[place]
    if not again:
        print(f"[{item.number}] {item.overrides}", flush=True)
    note = _silent if ranks.secondary() else outcomes.note
    note(place, RUNNING, owner=lease.myself(), **_whereabouts(item))
    alive = contextlib.nullcontext() if ranks.secondary() else outcomes.beating(place)
    start = time.perf_counter()
    try:
        with alive:
            result = run(item)
    except (lease.Busy, lease.Lost) as error:
        if not again:
            print(f"[{item.number}] later: {error}", flush=True)
        return False
    except Exception as error:
        if item.request.debug:
            traceback.print_exc()
        reason = _reason(error)
        print(f"[{item.number}] error: {reason}", file=sys.stderr, flush=True)
        note(place, FAILED, error=reason, log=log_of(item), **_whereabouts(item))
        return True
    seconds = round(time.perf_counter() - start, 2)
    shown = result if item.request.task in ("cell", "score") else None
    note(place, DONE, seconds=seconds, **({"result": shown} if shown else {}))
    return True


def _silent(*_: object, **__: object) -> None:
    """Another process of the group tells."""


def run_item(item: plans.Item) -> dict[str, Any] | None:
    """Run a planned cell as the command line would."""
    from omegaconf import OmegaConf

    from vtprune.harness.cell import tasks
    from vtprune.harness.request import several

    return tasks.run_part(
        several.Part(item.bench, OmegaConf.create(item.config), item.choices), sweep=True
    )


def _reason(error: Exception) -> str:
    if isinstance(error, HarnessError):
        return one_line(error)
    return f"{one_line(error)} (debug=true shows where)"


def _whereabouts(item: plans.Item) -> dict[str, str]:
    """Where the cell lies, if the machine that planned it could not tell."""
    if item.directory is not None or item.request.task != "cell":
        return {}
    from vtprune.harness.cell.prepare import where

    _, directory = where(item.config, item.choices)
    return {} if directory is None else {"directory": directory}


def log_of(item: plans.Item) -> str | None:
    """The cell's own log if it came so far, else that of the job."""
    directory = item.directory or _whereabouts(item).get("directory")
    if directory is not None and (file := Path(directory) / "log.txt").exists():
        return str(file)
    return os.environ.get(JOB_LOG)


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m vtprune.harness.sweep.worker FOLDER JOB``: started by the supervisor."""
    terminal.show_what_can_be_shown()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("job", type=int)
    options = parser.parse_args(argv)
    also_from_here()
    plan = plans.load(options.folder)
    return work(plan, plan.jobs[options.job])


if __name__ == "__main__":
    sys.exit(main())
