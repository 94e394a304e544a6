"""The only reader of stored results: every cell below a folder, and what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vtprune.harness.request.errors import ConfigError
from vtprune.harness.store.journal import read_journal


@dataclass(frozen=True)
class Stored:
    """One directory of the store."""

    folder: Path
    identity: Mapping[str, Any]
    result: Mapping[str, Any] | None


def read(folder: Path) -> Stored | None:
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return Stored(folder, result["identity"], {**result, "directory": str(folder)})
    except FileNotFoundError:
        pass
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{folder}/result.json is damaged: {error}") from error
    try:
        content = yaml.safe_load((folder / "cell.yaml").read_text(encoding="utf-8"))
        return Stored(folder, content["identity"], None)
    except FileNotFoundError:
        return None


def entries(folder: Path) -> dict[int, dict[str, Any]]:
    """Journal entries of a cell by row."""
    return {entry["doc_id"]: entry for entry in read_journal(Path(folder) / "samples.jsonl")}


def config(folder: Path) -> dict[str, Any]:
    """The config a stored cell was run with; empty if it was not kept."""
    file = Path(folder) / "cell.yaml"
    if not file.is_file():
        return {}
    content = yaml.load(
        file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    )
    return content.get("config") or {}
