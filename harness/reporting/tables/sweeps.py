"""What the sweeps of a store say about the unfinished cells of a table."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vtprune.harness.request import compose as wanted
from vtprune.harness.request.errors import ConfigError
from vtprune.harness.request.identity import canonical_json
from vtprune.harness.sweep import status
from vtprune.harness.sweep.plan import Plan
from vtprune.harness.sweep.status import State


class Sweeps:
    """Planned cells below ``results/multirun`` by what they ask; of several the newest counts."""

    def __init__(self, results: Path) -> None:
        self._results = results

    @functools.cached_property
    def _planned(self) -> dict[str, tuple[Plan, int]]:
        found: dict[str, tuple[Plan, int]] = {}
        for plan, place in status.planned(self._results):
            config = plan.items[place].config
            if config["task"] == "cell" and (name := _name(config)) is not None:
                found.setdefault(name, (plan, place))
        return found

    def unfinished(self, config: Mapping[str, Any], folders: Sequence[Path]) -> State | None:
        """State of a cell without a result; None if nobody ever began or planned it.

        Args:
            config: composed config of the cell.
            folders: of the store, that answer its request.
        """
        own = [status.of_folder(folder) for folder in folders]
        for state in own:
            if state.name == status.RUNNING:
                return state
        if there := self._planned.get(_name(config) or ""):
            told = status.cell(*there)
            if told.name != status.DONE:
                return told
        return max(own, key=lambda state: state.answered, default=None)


def _name(config: Mapping[str, Any]) -> str | None:
    """What a config asks for, of which model and data; None if that is impossible to say."""
    try:
        asked = wanted.asked(dict(config))
    except (ValueError, TypeError, KeyError, ConfigError):
        return None  # ratio=high, say: its own sweep tells what is wrong with it
    data = {k: config["data"].get(k) for k in ("source", "seed", "samples", "revision")}
    return canonical_json([asked, config["model"]["name"], data])
