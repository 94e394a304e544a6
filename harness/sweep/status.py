"""What a sweep is doing, from any node that sees its folder: no SLURM, no torch."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from harness import lease
from harness.errors import HarnessError
from harness.store import read_journal
from harness.sweep import plan as plans
from harness.sweep.outcomes import DONE, FAILED, RUNNING, Outcomes

NOT_FINISHED = 3


def newest(results: Path) -> Path:
    """The folder of the sweep planned last."""
    found = list(Path(results).glob(f"multirun/**/{plans.FILE}"))
    if not found:
        raise HarnessError(f"no sweep below {results}/multirun")
    return max(found, key=lambda file: file.stat().st_mtime).parent


def cells(folder: Path) -> list[dict[str, Any]]:
    """Every cell of a sweep with its state: done, failed, running, interrupted or waiting."""
    plan, outcomes = plans.load(folder), Outcomes(folder)
    return [_cell(item, outcomes.get(place)) for place, item in enumerate(plan.items)]


def _cell(item: plans.Item, outcome: dict[str, Any] | None) -> dict[str, Any]:
    state = outcome["state"] if outcome else "waiting"
    found = {"cell": item.overrides, "state": state, **_where(outcome)}
    if state == DONE and "result" in outcome:
        return {**found, "score": outcome["result"]["score"]}
    if state == FAILED:
        return {**found, "error": outcome["error"], "log": outcome.get("log")}
    if item.directory is not None:
        held = lease.holder(Path(item.directory))
        if state == RUNNING and held is None:
            found["state"] = "interrupted"
        answered = {e["doc_id"] for e in read_journal(Path(item.directory) / "samples.jsonl")}
        found |= {"answered": len(answered)} if answered else {}
    return found


def _where(outcome: dict[str, Any] | None) -> dict[str, Any]:
    names = ("host", "slurm", "restart", "at")
    return {k: outcome[k] for k in names if outcome and k in outcome}


def show(folder: Path) -> int:
    """Print a line per cell and a summary line; 0 all done, 1 some failed, 3 not finished."""
    found = cells(folder)
    for cell in found:
        state = cell.pop("state")
        rest = " ".join(f"{k}={v}" for k, v in cell.items() if k != "cell" and v is not None)
        print(f"{state:<12}{cell['cell']}  {rest}".rstrip())
        cell["state"] = state
    count = Counter(cell["state"] for cell in found)
    print(f"{folder}: " + ", ".join(f"{n} {state}" for state, n in sorted(count.items())))
    sys.stdout.flush()
    if count[DONE] + count[FAILED] < len(found):
        return NOT_FINISHED
    return 1 if count[FAILED] else 0
