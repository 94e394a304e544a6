"""What cells and sweeps are doing, from any node that sees their folders: no SLURM, no torch.

The result store comes first, then the lease of a cell, then what the sweep noted about it, so that
`scripts/submit.py --status` and `scripts/tables.py table=NAME status` say the same.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtprune.harness.request.errors import HarnessError
from vtprune.harness.store import index, lease
from vtprune.harness.store.schema import Damaged
from vtprune.harness.sweep import plan as plans
from vtprune.harness.sweep import slurm
from vtprune.harness.sweep.outcomes import DONE, FAILED, RUNNING, Outcomes

INTERRUPTED, WAITING = "interrupted", "waiting"
STATES = (DONE, RUNNING, FAILED, INTERRUPTED, WAITING)
NOT_FINISHED = 3


@dataclass(frozen=True)
class State:
    """What became of a cell so far.

    Attributes:
        name: one of ``STATES``; interrupted: begun, not finished, and nobody is at it.
        reason: why it failed, or what an unfinished cell waits for.
        log: the file that tells more.
        answered: samples in its journal; 0 for a finished cell.
        where: host and SLURM job of its worker.
        score: of a finished cell.
    """

    name: str
    reason: str = ""
    log: str | None = None
    answered: int = 0
    where: str = ""
    score: float | None = None

    def text(self) -> str:
        """The state without its name, as ``key=value`` and the reason."""
        score = None if self.score is None else f"{self.score:.2f}"
        shown = {"score": score, "answered": self.answered or None, "on": self.where or None}
        pairs = [f"{k}={v}" for k, v in shown.items() if v is not None]
        told = [self.reason] if self.reason else []
        log = [f"(log: {short(self.log)})"] if self.log else []
        return "  ".join([*pairs, *told, *log])


def short(path: Path | str) -> str:
    """A path as one would type it here."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def newest(results: Path) -> Path:
    """The folder of the sweep planned last."""
    for folder in _folders(results):
        return folder
    raise HarnessError(f"no sweep below {results}/multirun")


def _folders(results: Path) -> list[Path]:
    """Sweeps, newest first."""
    found = list(Path(results).glob(f"multirun/**/{plans.FILE}"))
    return [file.parent for file in sorted(found, key=lambda f: f.stat().st_mtime, reverse=True)]


def planned(results: Path) -> Iterator[tuple[plans.Plan, int]]:
    """Every cell of every sweep of a store, as a plan and a place in it; the newest sweep first."""
    for folder in _folders(results):
        plan = plans.load(folder)
        yield from ((plan, place) for place in range(len(plan.items)))


def cells(folder: Path) -> list[State]:
    """The state of every cell of a sweep, in the order of its plan."""
    plan = plans.load(folder)
    return [cell(plan, place) for place in range(len(plan.items))]


def cell(plan: plans.Plan, place: int) -> State:
    """The state of one cell of a sweep."""
    item, outcomes = plan.items[place], Outcomes(plan.folder)
    outcome = outcomes.get(place) or {"state": WAITING}
    directory = item.directory or outcome.get("directory")
    if outcome["state"] == DONE:
        return State(DONE, score=(outcome.get("result") or {}).get("score"))
    now = State(WAITING) if directory is None else of_folder(Path(directory))
    if now.name == RUNNING or (now.name == DONE and item.request.force is False):
        return now  # by whichever sweep
    where, queued = _where(outcome), _queued(plan, place)
    if outcome["state"] == FAILED:
        return State(FAILED, outcome["error"], outcome.get("log"), now.answered, where)
    if outcome["state"] == RUNNING and outcomes.alive(place):
        return State(RUNNING, "", now.log, now.answered, where)  # it has not begun to answer
    if outcome["state"] == RUNNING or now.answered:
        reason = f"stopped before it was finished{queued}"
        return State(INTERRUPTED, reason, now.log, now.answered, where)
    return State(WAITING, f"no worker came to it yet{queued}")


def _queued(plan: plans.Plan, place: int) -> str:
    """Which job of an array has a cell."""
    file = plan.folder / slurm.JOB_FILE
    if not file.exists():
        return ""
    (number,) = (n for n, job in enumerate(plan.jobs) if place in job)
    return f"; in SLURM job {file.read_text(encoding='utf-8').strip()}_{number}"


def of_folder(folder: Path) -> State:
    """The state of a cell by its own directory, whoever began it."""
    unusable = "stopped before it was finished"
    try:
        if (result := index.result(folder)) is not None:
            return State(DONE, score=result["score"])
    except Damaged as problem:
        unusable = f"{problem.file.name} {problem.reason}"
    answered = index.answered(folder)
    log = folder / "log.txt"
    shown = str(log) if log.exists() else None
    owner = lease.holder(folder) if folder.exists() else None
    if owner is not None:
        where = _text(str(owner.get("host")).partition("/")[0], owner.get("slurm"), 0)
        return State(RUNNING, "", shown, answered, where)
    if not index.begun(folder):
        return State(WAITING)
    return State(INTERRUPTED, unusable, shown, answered)


def _where(outcome: dict[str, Any]) -> str:
    return _text(outcome.get("host"), outcome.get("slurm"), outcome.get("restart", 0))


def _text(host: str | None, job: str | None, restart: int) -> str:
    if host is None:
        return ""
    again = f" (start {restart + 1})" if restart else ""
    return f"{host}/{job}{again}" if job else host


def show(folder: Path) -> int:
    """Print a line per cell and a summary line; 0 all done, 1 some failed, 3 not finished."""
    found = cells(folder)
    for item, state in zip(plans.load(folder).items, found, strict=True):
        print(f"{state.name:<12}{item.overrides}  {state.text()}".rstrip())
    count = Counter(state.name for state in found)
    told = ", ".join(f"{count[name]} {name}" for name in STATES if count[name])
    print(f"{short(folder)}: {told}")
    sys.stdout.flush()
    if count[DONE] + count[FAILED] < len(found):
        return NOT_FINISHED
    return 1 if count[FAILED] else 0
