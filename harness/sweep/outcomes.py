"""What became of the cells of a sweep: one small file per cell, replaced by rename."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from harness.lease import slurm_job
from harness.store import write_atomic

DONE, FAILED, RUNNING = "done", "failed", "running"


class Outcomes:
    """The ``cells`` folder of a sweep."""

    def __init__(self, sweep: Path) -> None:
        self.folder = Path(sweep) / "cells"

    def note(self, name: int | str, state: str, **content: Any) -> None:
        """Write what is known about a cell now; replaces what was known before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        entry = {"state": state, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **_worker(), **content}
        write_atomic(self.folder / f"{name}.json", json.dumps(entry) + "\n")

    def get(self, name: int | str) -> dict[str, Any] | None:
        """What is known about one cell."""
        try:
            return json.loads((self.folder / f"{name}.json").read_text())
        except FileNotFoundError:
            return None

    def settled(self, name: int | str) -> bool:
        """True if nothing is left to do for a cell in this sweep."""
        entry = self.get(name)
        return entry is not None and entry["state"] in (DONE, FAILED)

    def crashed(self, name: int | str) -> int:
        """Count one more worker that died on this cell; returns how many did."""
        file = self.folder / f"{name}.crashes"
        count = int(file.read_text()) + 1 if file.exists() else 1
        write_atomic(file, str(count))
        return count


def _worker() -> dict[str, Any]:
    found = {"host": socket.gethostname(), "pid": os.getpid()}
    if job := slurm_job():
        found["slurm"] = job
        found["restart"] = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    return found
