"""Who works on a cell: a lease with expiry, so that no two processes ever compute the same one.

Only what every network file system does atomically is used: ``O_EXCL`` creation and rename.

    lease.3      the highest number holds; the file says who, its modification time says when last
    lease.2      earlier holders, kept until the cell is finished so that no number comes twice

A lease is renewed by touching the file. It may be taken over, by creating the next number, when it
was given back, when its holder is known to be dead (same machine: no such process; same SLURM job:
an earlier start), or when it has not been renewed for ``expiry`` seconds: those its holder promised
to renew it within, written into the lease. Ages compare two times of the file server, so clocks of
machines need not agree. A holder that slept through its expiry finds a higher number and stops
before it writes anything more.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from vtprune.harness.request.errors import HarnessError

EXPIRY = 120.0
_PREFIX = "lease."


class Busy(HarnessError):
    """Another process computes the cell."""


class Lost(HarnessError):
    """This process lost its lease while it slept; another one has the cell."""


class Lease:
    """A lease that is held; made by :func:`acquire`."""

    def __init__(self, file: Path, number: int, expiry: float) -> None:
        self.file, self.number, self.expiry = file, number, expiry
        self._renewed = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        while not self._stop.wait(self.expiry / 6):
            # A file server that is away for a moment; check() decides whether it was too long.
            with contextlib.suppress(OSError):
                self._renew()

    def _renew(self) -> None:
        os.utime(self.file)
        self._renewed = time.monotonic()

    def check(self) -> None:
        """Return if the lease is still held; called before anything is written.

        Raises:
            Lost: another process has taken the cell over.
        """
        if time.monotonic() - self._renewed > self.expiry / 2:
            with contextlib.suppress(FileNotFoundError):
                self._renew()
        check(self.file.parent, self.number)

    def release(self, finished: bool) -> None:
        """Give the lease back; of a finished cell nothing is left."""
        self._stop.set()
        self._thread.join()
        if finished:
            for file in self.file.parent.glob(f"{_PREFIX}*"):
                file.unlink(missing_ok=True)
        elif self.file.exists():
            _write(self.file, {**myself(), "released": True})


def check(folder: Path, number: int) -> None:
    """Return if the lease of this number still holds: for companions of its holder.

    Raises:
        Lost: another process has taken the cell over.
    """
    mine, next_one = (folder / f"{_PREFIX}{n}" for n in (number, number + 1))
    if next_one.exists() or not mine.exists():
        raise Lost(f"{folder}: another process took this cell over; it goes on there")


def acquire(folder: Path, expiry: float = EXPIRY) -> Lease:
    """Take the lease of a cell's directory.

    Raises:
        Busy: a living process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = _highest(folder)
    if number:
        _refuse_if_held(folder / f"{_PREFIX}{number}", expiry)
    mine = folder / f"{_PREFIX}{number + 1}"
    try:
        descriptor = os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        raise Busy(_busy(mine)) from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        json.dump({**myself(), "expiry": expiry}, stream)
    if _highest(folder) != number + 1:  # all numbers went and came again since we looked
        mine.unlink(missing_ok=True)
        raise Busy(_busy(folder / f"{_PREFIX}{_highest(folder)}"))
    return Lease(mine, number + 1, expiry)


def holder(folder: Path, expiry: float = EXPIRY) -> dict[str, Any] | None:
    """Who holds the lease of a directory now, with ``age`` in seconds; None if nobody does."""
    number = _highest(folder)
    if not number:
        return None
    file = folder / f"{_PREFIX}{number}"
    owner, age = _read(file), _age(file)
    if owner is None or age is None or _free(owner, age, expiry):
        return None
    return {**owner, "age": age}


def alive(owner: dict[str, Any], file: Path, expiry: float = EXPIRY) -> bool:
    """True unless a process is known to be dead, or ``file`` was not touched for so long.

    Args:
        owner: who it is, from :func:`myself` in that process.
        file: what it touches now and then.
        expiry: in seconds.
    """
    age = _age(file)
    return age is not None and not _free(owner, age, expiry)


def _refuse_if_held(file: Path, expiry: float) -> None:
    owner, age = _read(file), _age(file)
    if owner is None or age is None:
        raise Busy(f"{file.parent}: its lease has just changed hands")
    if not _free(owner, age, expiry):
        raise Busy(_busy(file))


def _free(owner: dict[str, Any], age: float, expiry: float) -> bool:
    limit = owner.get("expiry", expiry)  # what its holder goes by, whatever others think
    return bool(owner.get("released")) or age > limit or _dead(owner)


def _dead(owner: dict[str, Any]) -> bool:
    """True if the holder certainly does not live any more; False if that cannot be known."""
    me = myself()
    same_job = owner.get("slurm") and owner["slurm"] == me["slurm"]
    if same_job and owner.get("restart", 0) < me["restart"]:
        return True
    if owner.get("host") != me["host"] or not owner.get("start"):
        return False
    return _start_time(owner["pid"]) != owner["start"]


def myself() -> dict[str, Any]:
    """This process, so that others can tell whether it lives."""
    environment = os.environ
    return {
        "host": f"{socket.gethostname()}/{_boot()}",
        "pid": os.getpid(),
        "start": _start_time(os.getpid()),
        "slurm": slurm_job(),
        "restart": int(environment.get("SLURM_RESTART_COUNT", "0")),
        "token": uuid.uuid4().hex,
    }


def slurm_job() -> str | None:
    """The SLURM job around this process as squeue shows it; the same after it was queued again."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")


def _boot() -> str:
    """Tells machines, and containers with process numbers of their own, apart."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()[:8]
        return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return "?"


def _start_time(pid: int) -> str | None:
    """When a process began, so that a reused number is not taken for it; None: no such one."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _highest(folder: Path) -> int:
    numbers = [f.name.removeprefix(_PREFIX) for f in folder.glob(f"{_PREFIX}*")]
    return max((int(n) for n in numbers if n.isdigit()), default=0)


def _read(file: Path) -> dict[str, Any] | None:
    """What a lease says; {} while its holder is still writing it, None if it is gone."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}


def _age(file: Path) -> float | None:
    """Seconds since the last renewal by the file server's clock; by ours if we may not write."""
    probe = file.with_name(f".now-{uuid.uuid4().hex}")
    try:
        try:
            probe.touch()
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            return time.time() - file.stat().st_mtime
        # Opened, not only looked up: network file systems then ask the server.
        with file.open(encoding="utf-8") as lease, probe.open(encoding="utf-8") as now:
            return os.fstat(now.fileno()).st_mtime - os.fstat(lease.fileno()).st_mtime
    except FileNotFoundError:
        return None
    finally:
        probe.unlink(missing_ok=True)


def _write(file: Path, content: dict[str, Any]) -> None:
    temporary = file.with_name(f".{file.name}-{uuid.uuid4().hex}")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    os.replace(temporary, file)


def _busy(file: Path) -> str:
    owner = _read(file) or {}
    where = f"process {owner.get('pid')} on {str(owner.get('host')).partition('/')[0]}"
    job = f", SLURM job {owner['slurm']}" if owner.get("slurm") else ""
    return f"{file.parent}: computed right now by {where}{job}"
