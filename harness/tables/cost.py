"""Compute of a stored cell under a named convention, from the token counts of its samples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from harness.cost import architecture_of, convert
from harness.cost.architecture import Architecture, smaller_crops
from harness.cost.conventions import Tokens
from harness.store import read_journal
from harness.tables.lookup import repo_path

PAPER = "paper_gprune"


def tera(cell: Mapping[str, Any], result: Mapping[str, Any], convention: str = PAPER) -> float:
    """Mean over the samples, in 10^12, of a prefill counted by ``convention``; NaN if unknown."""
    arch = _architecture(str(cell["model"].get("architecture")))
    if arch is None:
        return float("nan")
    counted = [_count(arch, entry, convention) for entry in _pruned(Path(result["directory"]))]
    return sum(counted) / len(counted) / 1e12 if counted else float("nan")


def _pruned(folder: Path) -> list[Mapping[str, Any]]:
    entries = read_journal(folder / "samples.jsonl")
    return [e["pruning"] for e in entries if not e["error"] and e.get("visual_tokens")]


def _count(arch: Architecture, record: Mapping[str, Any], convention: str) -> int:
    text = record["prompt_length"] - record["visual_tokens"]
    images: Any = tuple(tuple(grid) for grid in record["grids"]) or record["crops"]
    if "unreduced" in record:
        arch = smaller_crops(arch, record["grids"])
    return convert(convention, arch, Tokens(images, text, record["visual_per_layer"]))


@cache
def _architecture(text: str) -> Architecture | None:
    file = repo_path(text)
    if not file.is_file():
        return None
    try:
        return architecture_of(_namespace(json.loads(file.read_text())))
    except (AttributeError, ValueError):  # a config that leaves sizes to its class's defaults
        return None


def _namespace(value: Any) -> Any:
    if isinstance(value, dict):
        return SimpleNamespace(**{k: _namespace(v) for k, v in value.items()})
    return value
