"""Experiment trackers as mirrors: fed from a stored result, never in the way of a run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vtprune import places
from vtprune.harness.request.errors import ConfigError
from vtprune.harness.request.request import Logger
from vtprune.harness.store import index

_MODES = ("offline", "online")


def check(logger: Logger) -> None:
    """Refuse an impossible ``logger`` entry before anything is computed."""
    if logger.name == "wandb" and logger.mode not in _MODES:
        raise ConfigError(f"logger.mode must be offline or online: got {logger.mode!r}")


def publish(logger: Logger, folder: Path) -> str | None:
    """Mirror the finished cell in ``folder``; what went wrong in one line, None if all went well.

    In a process of its own: the client may hang at exit when its server is away, and it may fail in
    any way it likes, without the run noticing more than this line.
    """
    if logger.name == "none":
        return None
    log = Path(folder) / "wandb.log"
    about = json.dumps(asdict(logger))
    command = places.module("harness.reporting.tracker.run", str(folder), about)
    again = f"{places.command('sync')} publishes it later (log: {log})"
    with log.open("a", encoding="utf-8") as stream:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
            env=places.environment(), start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(timeout=logger.timeout_s)
        except subprocess.TimeoutExpired:
            return f"wandb: no answer within {logger.timeout_s} s; {again}"
        finally:
            _end(process)
    return f"wandb: publishing failed; {again}" if status else None


def _end(process: subprocess.Popen) -> None:
    """Nothing of the client stays behind, its service process neither."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

MARKER = "wandb.json"
FORMAT = 2  # raise when a run holds something else than before: it is published again then


def target(logger: Logger, result_file: Path) -> dict[str, Any]:
    """What publishing would publish, and where to."""
    online = logger.mode == "online"
    return {
        "result": hashlib.sha256(result_file.read_bytes()).hexdigest()[:16],
        "format": FORMAT,
        "mode": logger.mode,
        "project": logger.project,
        "entity": logger.entity,
        "server": os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai") if online else None,
    }


def published(folder: Path, logger: Logger) -> bool:
    """True if this very result is there already."""
    marker = folder / MARKER
    if not marker.exists():
        return False
    known = json.loads(marker.read_text(encoding="utf-8"))
    there = known["mode"] == "online" or any(folder.glob(f"wandb/{known['run']}/*.wandb"))
    wanted = target(logger, folder / index.RESULT)
    return there and {k: known.get(k) for k in wanted} == wanted
