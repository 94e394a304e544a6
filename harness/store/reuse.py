"""Take over answers from other runs of the same request on other rows of the same data.

A cell on 10 % of a benchmark and the cell on all of it differ in which rows are asked and in
nothing else; a row answered there need not be answered again. Batches were those of the earlier
run, so the last bits of a logit may differ from a run in one go; the number of answers taken over
is stored with the result and stands in the foot file of every table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vtprune.harness.request.identity import canonical_json
from vtprune.harness.store import index, provenance
from vtprune.harness.store.cell import Store
from vtprune.harness.store.journal import Journal

_WHICH_ROWS = ("limit", "indices", "subset")
_FROM_SCORING = ("score", "reference", "question_id", "image_id")


def into(store: Store, method: Mapping[str, Any]) -> int:
    """Append to the cell's journal what its siblings answered with the same code; returns how many.

    A journal that exists is left alone: the cell was begun before and took over then.
    """
    if store.journal_file.exists() and store.journal_file.stat().st_size:
        return 0
    found = _answers(store, method)
    if not found:
        return 0
    with Journal(store.journal_file) as journal:
        for entry in found.values():
            journal.append(entry)
    return len(found)


def _answers(store: Store, method: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    wanted, found = _request(store.cell.identity), {}
    name = store.folder.name.rpartition("-")[0]
    for folder in sorted(store.folder.parent.glob(f"{name}-*")):
        if folder == store.folder or not _is_same_request(folder, wanted):
            continue
        if provenance.is_stale(index.code(folder), method):
            continue
        for entry in index.samples(folder):
            if not entry["error"]:
                kept = {k: v for k, v in entry.items() if k not in _FROM_SCORING}
                found[entry["doc_id"]] = {**kept, "reused": folder.name.rpartition("-")[2]}
    return found


def _is_same_request(folder: Path, wanted: str) -> bool:
    stored = index.read(folder)
    return stored is not None and _request(stored.identity) == wanted


def _request(identity: Mapping[str, Any]) -> str:
    """The identity without the choice of rows."""
    bench = {k: v for k, v in identity["bench"].items() if k not in _WHICH_ROWS}
    return canonical_json({**identity, "bench": bench})
