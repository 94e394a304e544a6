"""Several processes on one cell, one device each, started by ``torchrun`` or ``accelerate``.

Each rank answers every n-th batch into a journal of its own; when all are done, rank 0 folds the
journals into the cell's and scores once. The engine never learns that there were others, so its own
way of sharing requests, with copies as padding, plays no part.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from vtprune.harness.request.errors import HarnessError, one_line
from vtprune.harness.store import index
from vtprune.harness.store.journal import Journal, read_journal
from vtprune.harness.store.lease import Lost

POLL = 0.02  # seconds between two looks at what the others are doing
_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")


class Elsewhere(HarnessError):
    """Another process of the group failed, so there is nothing to go on with."""


@dataclass(frozen=True)
class Ranks:
    """This process among its group."""

    rank: int
    world: int
    local: int
    store: Any = field(default=None, compare=False)
    _cells: list[int] = field(default_factory=list, compare=False)
    _passed: list[int] = field(default_factory=list, compare=False)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def device(self, device: str) -> str:
        """The device of this rank: ``cuda`` becomes ``cuda:<local rank>``."""
        return f"cuda:{self.local}" if device == "cuda" else device

    def journal(self, folder: Path) -> Path:
        """Journal of this rank; rank 0 folds it into ``samples.jsonl``."""
        return folder / f"samples.rank{self.rank}.jsonl"

    def wait(self) -> None:
        """Until every rank has come here; a rank that died is noticed by the launcher."""
        name = self._step("wait")
        if self.store.add(f"{name}/came", 1) == self.world:
            self.store.set(f"{name}/all", "1")
        self._until(f"{name}/all")

    def agree(self, verdict: str | None = None) -> str:
        """Rank 0 gives a verdict, the others get to know it."""
        name = self._step("verdict")
        if verdict is not None:
            self.store.set(name, verdict)
            return verdict
        self._until(name)
        return self.store.get(name).decode()

    @contextlib.contextmanager
    def cell(self) -> Iterator[None]:
        """All ranks work on one cell; where one of them fails, nobody waits for it.

        Raises:
            HarnessError: another rank failed.
            Lost: the cell was taken over from the rank that holds its lease.
        """
        self._cells.append(1)
        self._passed.clear()
        broken = f"cell/{len(self._cells)}/broken"
        try:
            yield
        except Exception as error:
            if not isinstance(error, Elsewhere):
                kind = "lost" if isinstance(error, Lost) else "failed"
                self.store.set(broken, f"{kind} process {self.rank}: {one_line(error)}")
            raise

    def _step(self, what: str) -> str:
        """A name that all ranks give to this moment: they do the same steps in every cell."""
        self._passed.append(1)
        return f"cell/{len(self._cells)}/{what}/{len(self._passed)}"

    def _until(self, name: str) -> None:
        broken = f"cell/{len(self._cells)}/broken"
        while not self.store.check([name]):
            if self.store.check([broken]):
                kind, _, reason = self.store.get(broken).decode().partition(" ")
                raise (Lost if kind == "lost" else Elsewhere)(reason)
            time.sleep(POLL)


@cache
def join() -> Ranks | None:
    """The group the launcher made, or None in an ordinary process.

    Only the launcher's key-value store is used. A process group would break the connection of the
    others when a rank that has nothing left to do goes home first.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return None
    from torch.distributed.rendezvous import rendezvous

    store, rank, world = next(rendezvous("env://"))
    return Ranks(rank, world, int(os.environ.get("LOCAL_RANK", "0")), store)


def grouped() -> bool:
    """True in every process of a group."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def secondary() -> bool:
    """True in all processes of a group but the first: they keep quiet."""
    return int(os.environ.get("RANK", "0")) > 0 and grouped()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hide the group from libraries that would divide the work themselves."""
    before = {name: os.environ.pop(name) for name in _NAMES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def fold(folder: Path, journal: Path) -> int:
    """Move the entries of all ranks' journals into the cell's; returns how many."""
    parts = sorted(folder.glob("samples.rank*.jsonl"))
    count = 0
    with Journal(journal) as whole:
        for part in parts:
            for entry in read_journal(part, index.tell):
                whole.append(entry)
                count += 1
    # Removed only now: a kill in between leaves entries twice, and the last one of a sample wins.
    for part in parts:
        part.unlink()
    return count
