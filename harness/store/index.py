"""The only reader of stored results: every cell and timing below a folder, and what is odd there.

One file that cannot be read is one line on stderr (:func:`tell`), never the end of a listing: all
other cells are still there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml

from vtprune.harness.store.journal import read_journal
from vtprune.harness.store.schema import Damaged, Result, Sample, Timing, check

RESULT, TIMING, JOURNAL, CELL = "result.json", "timing.json", "samples.jsonl", "cell.yaml"
_AGAIN = "the same command with force=true makes it again"


@dataclass(frozen=True)
class Stored:
    """One directory of the store; ``result`` is None while the cell is not finished."""

    folder: Path
    identity: Mapping[str, Any]
    result: Result | None


@cache
def tell(problem: str) -> None:
    """Say once in a process what is wrong with a file."""
    print(f"note: {problem}", file=sys.stderr, flush=True)


def _content(file: Path) -> Any:
    """A JSON file; FileNotFoundError if there is none, Damaged if it cannot be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        reason = "is empty" if file.stat().st_size == 0 else f"is damaged ({error})"
        raise Damaged(file, f"{reason}; {_AGAIN}") from error


def result(folder: Path) -> Result | None:
    """The result of a cell; None while it is not finished.

    Raises:
        Damaged: the file is empty, cut, no JSON, or of another version.
    """
    file = Path(folder) / RESULT
    try:
        found = check(_content(file), Result, file, _AGAIN)
    except FileNotFoundError:
        return None
    return cast(Result, {**found, "directory": str(folder)})


def timing(folder: Path) -> Timing | None:
    """A stored timing; None if there is none.

    Raises:
        Damaged: as :func:`result`.
    """
    file = Path(folder) / TIMING
    try:
        found = check(_content(file), Timing, file, _AGAIN)
    except FileNotFoundError:
        return None
    return cast(Timing, {**found, "directory": str(folder)})


def read(folder: Path) -> Stored | None:
    """A directory of the store; None if it is none, or what lies there is no use (told)."""
    try:
        found = result(folder)
    except Damaged as problem:
        tell(str(problem))
        return None
    if found is not None:
        return Stored(folder, found["identity"], found)
    identity = _described(folder).get("identity")
    return Stored(folder, identity, None) if isinstance(identity, Mapping) else None


def cells(results: Path) -> Iterator[Stored]:
    """Every cell of a store that can be read, finished or not, in the order of their names."""
    for folder in sorted((Path(results) / "runs").glob("*/*/*/")):
        if folder.parent.parent.name != "timing" and (found := read(folder)) is not None:
            yield found


def finished(results: Path, bench: str = "*", model: str = "*") -> Iterator[Result]:
    """Results of all finished cells that can be read; set-aside ones are left out."""
    for file in sorted((Path(results) / "runs").glob(f"{bench}/{model}/*/{RESULT}")):
        if (found := read(file.parent)) is not None and found.result is not None:
            yield found.result


def timings(results: Path, model: str = "*") -> Iterator[Timing]:
    """Every stored timing that can be read."""
    for file in sorted((Path(results) / "runs" / "timing").glob(f"{model}/*/{TIMING}")):
        try:
            if (found := timing(file.parent)) is not None:
                yield found
        except Damaged as problem:
            tell(str(problem))


def profiles(results: Path) -> Iterator[dict[str, Any]]:
    """Every stored profile that can be read."""
    for file in sorted((Path(results) / "profiles").glob("*/*.json")):
        try:
            yield _content(file)
        except Damaged as problem:
            tell(str(problem))


def samples(folder: Path) -> list[Sample]:
    """Entries of a cell's journal in the order written; the last one of a sample counts.

    A damaged line is left out and told.
    """
    latest = {entry["doc_id"]: entry for entry in read_journal(Path(folder) / JOURNAL, tell)}
    return cast("list[Sample]", list(latest.values()))


def entries(folder: Path) -> dict[int, Sample]:
    """Journal entries of a cell by row."""
    return {entry["doc_id"]: entry for entry in samples(folder)}


def changed(folder: Path) -> int:
    """When a cell's journal changed last, in nanoseconds; 0 if it has none."""
    file = Path(folder) / JOURNAL
    return file.stat().st_mtime_ns if file.exists() else 0


def answered(folder: Path) -> int:
    """Samples with an answer in all journals of a cell, those of its ranks included."""
    files = sorted(Path(folder).glob("samples*.jsonl"))
    found = [entry for file in files for entry in read_journal(file, tell)]
    return len({entry["doc_id"] for entry in found if not entry.get("error")})


def begun(folder: Path) -> bool:
    """True if a run ever began in this directory."""
    return any(Path(folder).glob("samples*.jsonl")) or (Path(folder) / CELL).exists()


def config(folder: Path) -> dict[str, Any]:
    """The config a stored cell was run with; empty if it was not kept."""
    return _described(Path(folder)).get("config") or {}


def code(folder: Path) -> Mapping[str, Any]:
    """Fingerprints of the code that a directory's answers come from; empty if not recorded."""
    found = read(folder)
    if found is not None and found.result is not None:
        return found.result["provenance"]
    return _described(Path(folder)).get("provenance") or {}


def _described(folder: Path) -> dict[str, Any]:
    """``cell.yaml``; empty if there is none or it cannot be read (told)."""
    file = folder / CELL
    try:
        text = file.read_text(encoding="utf-8")
        content = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        line = " ".join(str(error).split())
        tell(f"{file}: is damaged ({line}); the next run of its cell writes it again")
        return {}
    if not isinstance(content, dict):
        tell(f"{file}: is empty; the next run of its cell writes it again")
        return {}
    return content
