"""Rows that are scored together: MME's pairs, the rotations of a circular question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def scorable(
    asked: Sequence[int], groups: dict[int, Any], entries: dict[int, dict[str, Any]]
) -> list[int]:
    """The answered rows whose whole group was answered; half a pair cannot be scored."""
    broken = {groups[row] for row in asked if row in groups and entries[row]["error"]}
    return [row for row in asked if not entries[row]["error"] and groups.get(row) not in broken]
