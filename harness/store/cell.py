"""One directory per cell: resolved config, a journal of samples, the result written last.

    cell.yaml       config, identity and versions, written first
    samples.jsonl   one line per answered sample, appended with a single write each
    result.json     written by atomic rename when everything is done; its existence means done
    log.txt         what the libraries had to say

After kill -9 the journal ends in at most one torn line, which is dropped; every other line is a
sample that need not be answered again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vtprune.harness.request.check import RETRY, STALE
from vtprune.harness.request.identity import Cell, canonical_json
from vtprune.harness.request.request import Request
from vtprune.harness.store import index, provenance
from vtprune.harness.store.journal import line, unguarded, write_atomic
from vtprune.harness.store.schema import SCHEMA, Damaged, Result, Sample


def stands(result: Result, request: Request) -> bool:
    """True if a stored result is not to be computed again under the request's ``force``."""
    if request.force == RETRY:
        return not result["n_failed"]
    if request.force == STALE:
        return not provenance.is_stale(result["provenance"], request.config["method"])
    return not request.force


class Store:
    """The directory of one cell."""

    def __init__(self, results: Path, cell: Cell) -> None:
        self.cell = cell
        self.folder = Path(results) / "runs" / cell.directory
        # Called before anything is written; raises when another process has taken the cell over.
        self.guard: Callable[[], None] = unguarded

    @property
    def result_file(self) -> Path:
        return self.folder / "result.json"

    @property
    def journal_file(self) -> Path:
        return self.folder / "samples.jsonl"

    @property
    def log_file(self) -> Path:
        return self.folder / "log.txt"

    def result(self) -> Result | None:
        """The stored result, or None while the cell is not finished.

        One that is damaged, or of another version, counts as none and is told.
        """
        try:
            return index.result(self.folder)
        except Damaged as problem:
            index.tell(str(problem))
            return None

    def open(self, config: dict[str, Any], *, fresh: bool = False) -> None:
        """Create the directory and ``cell.yaml``; with ``fresh`` set an earlier run aside.

        Nothing that took hours is deleted: earlier files move to ``previous-<time>/``.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if fresh:
            self._set_aside()
        import yaml

        content = {
            "key": self.cell.key,
            "identity": self.cell.identity,
            "config": config,
            "provenance": provenance.code(config["method"]),
        }
        text = yaml.safe_dump(json.loads(canonical_json(content)), sort_keys=False)
        write_atomic(self.folder / "cell.yaml", text)

    def describe(self, effective: dict[str, Any]) -> None:
        """Add to ``cell.yaml`` what was in force, known once the model answers."""
        import yaml

        file = self.folder / "cell.yaml"
        self.guard()
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        text = yaml.safe_dump({**content, "effective": effective}, sort_keys=False,
                              allow_unicode=True)  # fmt: skip
        write_atomic(file, text)

    def _set_aside(self) -> None:
        files = [self.result_file, self.journal_file, self.log_file]
        if any(file.exists() for file in files):
            self._move(files)

    def set_aside_foreign(self, config: dict[str, Any]) -> Path | None:
        """Move away what other code answered, so that no result mixes the two; None: nothing."""
        if not index.begun(self.folder) or not index.samples(self.folder):
            return None
        if not provenance.is_stale(index.code(self.folder), config["method"]):
            return None
        return self._move([self.result_file, self.journal_file, self.log_file])

    def reopen(self) -> Path:
        """Make a finished cell an interrupted one; its result is set aside, its answers stay."""
        return self._move([self.result_file])

    def _move(self, files: Iterable[Path]) -> Path:
        """Into a new folder of this second; a second one of the same second has a number."""
        name = time.strftime("previous-%Y%m%d-%H%M%S")
        aside, number = self.folder / name, 1
        while aside.exists():
            number += 1
            aside = self.folder / f"{name}-{number}"
        aside.mkdir()
        for file in files:
            if file.exists():
                file.rename(aside / file.name)
        return aside

    def samples(self) -> list[Sample]:
        """Journal entries in the order written; the last entry of a sample wins."""
        return index.samples(self.folder)

    def finish(self, samples: Iterable[dict[str, Any]], result: dict[str, Any]) -> None:
        """Replace the journal by the scored samples, then write the result."""
        self.guard()
        lines = "".join(line(entry) for entry in samples)
        write_atomic(self.journal_file, lines)
        result = {"schema": SCHEMA, **result}
        write_atomic(self.result_file, json.dumps(result, indent=1, allow_nan=False) + "\n")
