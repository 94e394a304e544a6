"""What became of the cells of a sweep: one small file per cell, replaced by rename."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vtprune.harness.store import lease
from vtprune.harness.store.journal import write_atomic

BEAT = 20.0  # seconds between two signs of life
DONE, FAILED, RUNNING = "done", "failed", "running"


class Outcomes:
    """The ``cells`` folder of a sweep."""

    def __init__(self, sweep: Path) -> None:
        self.folder = Path(sweep) / "cells"

    def note(self, name: int | str, state: str, **content: Any) -> None:
        """Write what is known about a cell now; replaces what was known before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        entry = {"state": state, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **_worker(), **content}
        write_atomic(self.file(name), json.dumps(entry) + "\n")

    def get(self, name: int | str) -> dict[str, Any] | None:
        """What is known about one cell."""
        try:
            return json.loads(self.file(name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def file(self, name: int | str) -> Path:
        """Where it stands what is known about one cell."""
        return self.folder / f"{name}.json"

    @contextlib.contextmanager
    def beating(self, name: int | str) -> Iterator[None]:
        """While a worker is at a cell, from before it has the cell's lease: it lives."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(BEAT):
                with contextlib.suppress(OSError):
                    os.utime(self.file(name))

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def alive(self, name: int | str) -> bool:
        """True if the worker that noted a running cell is not known to be dead, or silent."""
        entry = self.get(name)
        owner = (entry or {}).get("owner")
        return owner is not None and lease.alive(owner, self.file(name))

    def settled(self, name: int | str) -> bool:
        """True if nothing is left to do for a cell in this sweep."""
        entry = self.get(name)
        return entry is not None and entry["state"] in (DONE, FAILED)

    def crashed(self, name: int | str) -> int:
        """Count one more worker that died on this cell; returns how many did."""
        file = self.folder / f"{name}.crashes"
        count = int(file.read_text(encoding="utf-8")) + 1 if file.exists() else 1
        write_atomic(file, str(count))
        return count


def _worker() -> dict[str, Any]:
    found = {"host": socket.gethostname(), "pid": os.getpid()}
    if job := lease.slurm_job():
        found["slurm"] = job
        found["restart"] = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    return found
