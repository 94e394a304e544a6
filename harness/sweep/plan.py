"""The plan of a sweep: resolved cells, divided into jobs; plain JSON, readable without Hydra."""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vtprune.harness.request.errors import ConfigError, HarnessError
from vtprune.harness.request.identity import canonical_json
from vtprune.harness.request.request import Request

FILE = "plan.json"
GROUPINGS = ("model", "none")


@dataclass(frozen=True)
class Item:
    """One cell to run.

    Attributes:
        number: of the job in Hydra's order.
        overrides: what distinguishes it from the others, for people.
        bench: its benchmark.
        config: composed and resolved.
        choices: of the config groups.
        key: of the cell, as far as this machine can tell; None if it cannot.
        directory: of the cell below ``runs``, with the same reservation.
    """

    number: int
    overrides: str
    bench: str
    config: dict[str, Any]
    choices: dict[str, Any]
    key: str | None = None
    directory: str | None = None

    @cached_property
    def request(self) -> Request:
        """What the cell asks for."""
        return Request(self.config)


@dataclass(frozen=True)
class Plan:
    """Cells and jobs; ``jobs`` holds places in ``items``."""

    folder: Path
    items: tuple[Item, ...]
    jobs: tuple[tuple[int, ...], ...]
    command: str = ""
    created: str = ""

    def save(self) -> None:
        """Write the plan; a folder holds one plan and never another."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {
            "created": self.created or time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": self.command,
            "jobs": [list(job) for job in self.jobs],
            "items": [asdict(item) for item in self.items],
        }
        try:
            descriptor = os.open(self.folder / FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            raise HarnessError(f"{self.folder} already holds a sweep: run it again") from None
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(content, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())


def load(folder: Path) -> Plan:
    """The plan in a sweep's folder."""
    try:
        content = json.loads((Path(folder) / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HarnessError(f"{folder} holds no sweep (no {FILE})") from None
    items = tuple(Item(**item) for item in content["items"])
    jobs = tuple(tuple(job) for job in content["jobs"])
    return Plan(Path(folder), items, jobs, content["command"], content["created"])


def divide(
    items: Sequence[Item], group_by: str, cells_per_job: int, done: Collection[int] = ()
) -> list[tuple[int, ...]]:
    """Places of the items, job by job, without those at ``done``.

    With ``group_by=model`` a job has one model, loaded once, and cells of one benchmark follow each
    other. A group that is too large is cut into jobs of nearly equal size.
    """
    if group_by not in GROUPINGS:
        raise ConfigError(f"sweep.group_by must be one of {', '.join(GROUPINGS)}: got {group_by!r}")
    if not isinstance(cells_per_job, int) or cells_per_job < 1:
        raise ConfigError(f"sweep.cells_per_job must be a whole number >= 1: got {cells_per_job!r}")
    groups: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        if place in done:
            continue
        model = canonical_json(asdict(item.request.model)) if group_by == "model" else ""
        groups.setdefault(model, []).append(place)
    jobs: list[tuple[int, ...]] = []
    for group in groups.values():
        if group_by == "model":
            first = {items[place].bench: place for place in reversed(group)}
            group.sort(key=lambda place: first[items[place].bench])
        count = math.ceil(len(group) / cells_per_job)
        cuts = [round(i * len(group) / count) for i in range(count + 1)]
        jobs += [tuple(group[a:b]) for a, b in itertools.pairwise(cuts)]
    return jobs


def without_copies(items: Sequence[Item]) -> list[Item]:
    """Items whose cell is not already there, e.g. one baseline for all ratios."""
    seen: set[str] = set()
    kept = []
    for item in items:
        if item.key is None or item.key not in seen:
            kept.append(item)
            seen.add(item.key or "")
    return kept
