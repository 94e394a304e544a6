"""A Hydra sweeper whose jobs are the cells of a table: `python run.py -m experiment=mini_table1`.

Rows of a table are no product of lists (only `random` has seeds, only FastV has a K), which is all
that Hydra's own sweeper can express. Launchers see ordinary jobs.
"""

from __future__ import annotations

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override

from vtprune.harness.request.errors import ConfigError


class TableSweeper(BasicSweeper):
    """Launches the cells of ``table``, with what else the command line says added to each.

    With ``task=time`` the timings of its rows instead, if it shows speed; ``controls`` and ``add``
    are rows more, see :mod:`vtprune.harness.reporting.tables.asked`.
    """

    def __init__(
        self,
        table: str,
        max_batch_size: int | None,
        params: Any = None,
        controls: bool = False,
        add: str | None = None,
    ) -> None:
        super().__init__(max_batch_size=max_batch_size, params=params)
        self.table = {"table": table, "controls": controls, "add": add}

    def split_arguments(  # type: ignore[override]
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """One job per cell; options given on the command line win over the table's settings."""
        (common,) = BasicSweeper.split_arguments(overrides, None)
        if len(common) != 1:
            raise ConfigError("a table cannot be combined with another sweep")
        given = _settings(overrides)
        jobs = [[*common[0], *_without(cell.arguments, given)] for cell in self._cells(given)]
        size = max_batch_size or len(jobs) or 1
        return [jobs[i : i + size] for i in range(0, len(jobs), size)]

    def validate_batch_is_legal(self, batch: Any) -> None:
        """Nothing: the table has composed its cells, and Hydra's compose takes 0.1 s for each."""

    def _cells(self, given: dict[str, Any]) -> list[Any]:
        # Hydra imports this file at every start
        from vtprune.harness.reporting.tables import asked, speed

        fixed = ("method", "ratio", "bench", "seed")
        own = {k: v for k, v in given.items() if k in fixed}
        if own:
            named = self.table["table"]
            raise ConfigError(f"{next(iter(own))} is a row or column of table {named}")
        known = {k: v for k, v in given.items() if _describes(k)}
        table = asked.load(self.table, known)
        task = given.get("task", "cell")
        if task not in ("cell", "time"):
            raise ConfigError(f"a table is filled by task=cell and timed by task=time, not {task}")
        return speed.timings(table) if task == "time" else table.cells()


def _describes(key: str) -> bool:
    """True for options that are part of what a cell asks for."""
    groups = ("model", "data", "engine", "bench.", "decoding.", "method.", "timing", "budget.")
    return key in ("batch_size", "image_size", "text_tokens") or key.startswith(groups)


def _settings(overrides: list[Override]) -> dict[str, Any]:
    skipped = ("experiment", "hydra")
    return {
        o.key_or_group: o.value()
        for o in overrides
        if o.key_or_group and not o.key_or_group.startswith(skipped)
    }


def _without(arguments: list[str], given: dict[str, Any]) -> list[str]:
    return [a for a in arguments if a.partition("=")[0] not in given]


# A plain node: Hydra loads this file without entering it in sys.modules, which dataclasses need.
ConfigStore.instance().store(
    group="hydra/sweeper",
    name="table",
    node={
        "_target_": "hydra_plugins.table_sweeper.TableSweeper",
        "table": "???",
        "max_batch_size": None,
        "params": None,
        "controls": False,
        "add": None,
    },
    provider="table_sweeper",
)
