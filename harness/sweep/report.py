"""What a sweep did, shown by the process that started it: a table, what failed, a summary line."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vtprune import places
from vtprune.harness.cell import ranks
from vtprune.harness.sweep import plan as plans
from vtprune.harness.sweep import slurm
from vtprune.harness.sweep.outcomes import DONE, FAILED, Outcomes
from vtprune.harness.sweep.status import short

Entry = tuple[plans.Item, dict[str, Any] | None]


def report(folder: Path, show: Callable[[Sequence[dict[str, Any]]], None]) -> int:
    """Print the outcomes of the sweep in ``folder``; 0 if every cell is done or was submitted."""
    found = [file.parent for file in sorted(Path(folder).glob(f"**/{plans.FILE}"))]
    if ranks.secondary() or not found:
        return 0
    jobs = [f / slurm.JOB_FILE for f in found if (f / slurm.JOB_FILE).exists()]
    if jobs:
        return _submitted(found, jobs)
    entries = [entry for one in found for entry in _entries(one)]
    results = [o["result"] for _, o in entries if o and "result" in o]
    unique = {result["key"]: result for result in results}
    if unique:
        show(list(unique.values()))
    return _verdict(entries, folder)


def _submitted(folders: Sequence[Path], jobs: Sequence[Path]) -> int:
    cells = sum(len(job) for folder in folders for job in plans.load(folder).jobs)
    numbers = ", ".join(job.read_text(encoding="utf-8").strip() for job in jobs)
    folder = short(folders[0])
    print(f"submitted: SLURM job {numbers}, {cells} cells; logs: {folder}/logs")
    print(f"status: {places.command('submit')} --status {shlex.quote(folder)}", flush=True)
    return 0


def _entries(folder: Path) -> list[Entry]:
    outcomes = Outcomes(folder)
    return [(item, outcomes.get(place)) for place, item in enumerate(plans.load(folder).items)]


def _verdict(entries: Sequence[Entry], folder: Path) -> int:
    bad = 0
    for item, outcome in entries:
        state = outcome["state"] if outcome else None
        if state == DONE:
            continue
        bad += 1
        known = outcome["error"] if outcome and state == FAILED else None
        reason = known or _unfinished(outcome, folder)
        log = (outcome or {}).get("log")
        where = f" (log: {short(log)})" if log else ""
        print(f"failed: [{item.number}] {item.overrides}: {reason}{where}", file=sys.stderr)
    seconds = sum((o or {}).get("seconds", 0.0) for _, o in entries)
    good, before = len(entries) - bad, sum("before" in (o or {}) for _, o in entries)
    early = f" ({before} before)" if before else ""
    print(f"sweep: {len(entries)} cells, {good} done{early}, {bad} failed, "
          f"{seconds:.0f} s of work")  # fmt: skip
    if bad:
        print("the same command runs the failed ones again and keeps what they answered")
    return 1 if bad else 0


def _unfinished(outcome: dict[str, Any] | None, folder: Path) -> str:
    begun = "its worker ended in the middle" if outcome else "no worker came to it"
    return f"{begun} (logs below {short(folder)})"
