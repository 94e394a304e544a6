"""Compute of a stored cell under a named convention, from the token counts of its samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vtprune.harness.cost import architecture_of, convert
from vtprune.harness.cost.architecture import Architecture, smaller_crops
from vtprune.harness.cost.ledger import Tokens
from vtprune.harness.reporting.tables.lookup import repo_path
from vtprune.harness.reporting.tables.spec import PAPER
from vtprune.harness.store import index
from vtprune.models.describe import describe
from vtprune.models.errors import ModelLoadError

_OF_TOTALS = {"macs": 1, "flops": 2}  # what a run's own total can be turned into


#: what of a record its compute depends on
_COUNTED = (
    "prompt_length", "visual_tokens", "grids", "crops", "unreduced", "visual_per_layer", "merged",
)  # fmt: skip


@dataclass(frozen=True)
class Counted:
    """Compute of a cell, mean over its samples: 10^12 operations of a prefill, and which ones."""

    tera: float
    convention: str


def count(
    cell: Mapping[str, Any], result: Mapping[str, Any], convention: str = PAPER
) -> Counted | None:
    """Compute of a stored cell under ``convention``, or under the one its run counted in.

    Every convention is a function of the architecture and of the tokens in each layer. Where the
    one is not described (a model of one's own) or the others were not kept, there is still the
    total that the run stored, which is ``macs``. None if there is nothing.
    """
    entries = _with_images(Path(result["directory"]))
    arch = _architecture(str(cell["model"].get("architecture")))
    if entries and arch is not None and all(_is_counted(e["pruning"]) for e in entries):
        known: dict[str, int] = {}  # many samples have as many tokens as one before
        spent = [_count(arch, entry, convention, known) for entry in entries]
        return Counted(sum(spent) / len(spent) / 1e12, convention)
    total = (result["counters"].get("macs") or {}).get("total")
    if not total:
        return None
    factor = _OF_TOTALS.get(convention)
    return Counted((factor or 1) * total / 1e12, convention if factor else "macs")


def _with_images(folder: Path) -> list[Mapping[str, Any]]:
    entries = index.samples(folder)
    return [e for e in entries if not e["error"] and e.get("visual_tokens")]


def _is_counted(record: Mapping[str, Any] | None) -> bool:
    return bool(record) and {"prompt_length", "grids", "crops", "visual_per_layer"} <= set(record)


def _count(
    arch: Architecture, entry: Mapping[str, Any], convention: str, known: dict[str, int]
) -> int:
    record = entry["pruning"]
    selection = int((entry.get("macs") or {}).get("selection") or 0)
    counted = [record.get(name) for name in _COUNTED]
    key = repr((counted, selection))
    if key not in known:
        known[key] = _spent(arch, record, selection, convention)
    return known[key]


def _spent(
    arch: Architecture, record: Mapping[str, Any], selection: int, convention: str
) -> int:  # fmt: skip
    text = record["prompt_length"] - record["visual_tokens"]
    images: Any = tuple(tuple(grid) for grid in record["grids"]) or record["crops"]
    if "unreduced" in record:
        arch = smaller_crops(arch, record["grids"])
    tokens = Tokens(images, text, record["visual_per_layer"], selection,
                    merged=record.get("merged", ()))  # fmt: skip
    return convert(convention, arch, tokens)


@cache
def _architecture(text: str) -> Architecture | None:
    try:
        return architecture_of(_namespace(describe(repo_path(text)).config))
    except (ModelLoadError, AttributeError, ValueError):
        return None  # no file, or one that leaves sizes to its class's defaults


def _namespace(value: Any) -> Any:
    if isinstance(value, dict):
        return SimpleNamespace(**{k: _namespace(v) for k, v in value.items()})
    return value
