"""A journal of samples: one write a line, so that a kill loses at most the line being written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vtprune.harness.request.errors import HarnessError


def unguarded() -> None:
    """Nobody else can be there."""


class Journal:
    """Appends samples: one ``write`` on an O_APPEND descriptor each, so a kill loses no line."""

    def __init__(self, path: Path, guard: Callable[[], None] = unguarded) -> None:
        self._guard = guard
        drop_torn_line(path)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def append(self, entry: dict[str, Any]) -> None:
        self._guard()
        data = line(entry).encode()
        written = os.write(self._descriptor, data)
        if written != len(data):
            raise HarnessError("the journal could not be written completely: is the disk full?")

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":")) + "\n"


def drop_torn_line(path: Path) -> bool:
    """Cut an unfinished last line off a journal; True if there was one."""
    if not path.exists():
        return False
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end == len(data):
        return False
    os.truncate(path, end)
    return True


def read_journal(path: Path, tell: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """Complete lines of a journal; a torn last line is left out.

    Args:
        tell: is told of every other damaged line, by its number; that line is left out then, and
            its sample counts as never asked. None: the first one is an error.

    Raises:
        HarnessError: a line is damaged and there is nobody to tell.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    complete = data[: data.rfind(b"\n") + 1]
    entries = []
    for number, line in enumerate(complete.split(b"\n")[:-1], 1):
        try:
            entries.append(_entry(line))
        except ValueError as error:
            problem = f"{path}: line {number} is damaged: {error}"
            if tell is None:
                raise HarnessError(problem) from error
            tell(f"{problem}; its sample counts as not asked")
    return entries


def _entry(line: bytes) -> dict[str, Any]:
    entry = json.loads(line)
    if not isinstance(entry, dict) or not isinstance(entry.get("doc_id"), int):
        raise ValueError("no sample")
    return entry


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or all of the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
