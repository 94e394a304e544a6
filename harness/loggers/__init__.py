"""Experiment trackers as mirrors: fed from a stored result, never in the way of a run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from vtprune.harness.errors import ConfigError

KNOWN = ("none", "wandb")
_MODES = ("offline", "online")


def check(logger: dict[str, Any]) -> None:
    """Refuse an impossible ``logger`` entry before anything is computed."""
    if logger["name"] == "wandb" and logger["mode"] not in _MODES:
        raise ConfigError(f"logger.mode must be offline or online: got {logger['mode']!r}")


def publish(logger: dict[str, Any], folder: Path) -> str | None:
    """Mirror the finished cell in ``folder``; what went wrong in one line, None if all went well.

    In a process of its own: the client may hang at exit when its server is away, and it may fail in
    any way it likes, without the run noticing more than this line.
    """
    if logger["name"] == "none":
        return None
    log = Path(folder) / "wandb.log"
    command = [sys.executable, "-m", "vtprune.harness.loggers.wandb_run", str(folder), json.dumps(logger)]
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    again = f"python scripts/wandb_sync.py publishes it later (log: {log})"
    with log.open("a") as stream:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
            env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(timeout=logger["timeout_s"])
        except subprocess.TimeoutExpired:
            return f"wandb: no answer within {logger['timeout_s']} s; {again}"
        finally:
            _end(process)
    return f"wandb: publishing failed; {again}" if status else None


def _end(process: subprocess.Popen) -> None:
    """Nothing of the client stays behind, its service process neither."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
