"""Check a composed config and turn it into what a run needs; no torch, no network unless asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtprune.harness.cell import recipes
from vtprune.harness.cost import solver
from vtprune.harness.evaluation import prefetch
from vtprune.harness.evaluation.data import source
from vtprune.harness.request import benches, check, checkpoint, clip, device
from vtprune.harness.request import identity as cells
from vtprune.harness.store.cell import Store


@dataclass(frozen=True)
class Prepared:
    """A checked request: the cell, and where to find what it names."""

    cell: cells.Cell
    config: dict[str, Any]
    checkpoint: checkpoint.Checkpoint
    runtime: dict[str, Any]
    data: source.DataSource
    notes: tuple[str, ...] = ()
    clip: clip.Found | None = None

    @property
    def results(self) -> Path:
        return Path(self.config["paths"]["results"])


def prepare(config: dict[str, Any], *, sweep: bool = False) -> Prepared:
    """Everything that can be known about a run before torch is imported.

    What is neither on this machine nor within reach is an error that names the command to fetch it.

    Args:
        config: the composed config as plain containers.
        sweep: part of a multirun, in which ``method=none`` meets ratios meant for the others.

    Raises:
        ConfigError: one line saying what is wrong with the request.
    """
    notes: list[str] = []
    check.check_task(config["task"])
    config = solver.resolve(config, notes)
    config = {**config, "ratio": check.ratio_of(config, sweep, notes)}
    check.check_numbers(config)
    bench = benches.for_engine(config["bench"], config["engine"], config["model"])
    config = {**config, "bench": bench}
    source.check(config["data"])
    if config["task"] == "calibrate":
        config = recipes.calibration_data(config)
    with prefetch.named(config):
        found = checkpoint.find(config["model"])
        tower = clip.find(config) if config["task"] == "cell" else None
    runtime = device.resolve(config["model"], found.config)
    if config["task"] == "cell":
        results = Path(config["paths"]["results"])
        config = recipes.resolve(config, found.fingerprint(), results, notes)
    engine = config["bench"]["engines"][config["engine"]["name"]]
    cache = Path(config["paths"]["results"]) / ".cache"
    with prefetch.named(config):
        data = source.prepare(config["data"], config["bench"], engine, cache.resolve())
    cell = cells.make(
        config,
        checkpoint=found.fingerprint(),
        model_type=found.model_type,
        runtime=runtime,
        data=data.identity,
        clip=tower.fingerprint if tower else None,
    )
    return Prepared(cell, config, found, runtime, data, tuple(notes), tower)


def dataless(config: dict[str, Any], *, sweep: bool = False) -> tuple[dict[str, Any], list[str]]:
    """The checked config of a task that reads neither benchmark nor checkpoint, and notes.

    Raises:
        ConfigError: one line saying what is wrong with the request.
    """
    notes: list[str] = []
    check.check_task(config["task"])
    config = solver.resolve(config, notes)
    config = {**config, "ratio": check.ratio_of(config, sweep, notes)}
    check.whole("batch_size", config["batch_size"], 1)
    check.whole("seed", config["seed"], 0)
    check.whole("text_tokens", config["text_tokens"], 2)
    return config, notes

def where(
    config: dict[str, Any], choices: dict[str, str | None]
) -> tuple[str | None, str | None]:  # fmt: skip
    """Key and directory of a cell as this machine sees it; what is wrong with it, the job tells."""
    try:
        check.check_keys(config, choices)
        prepared = prepare(config, sweep=True)
    except Exception:  # whatever it is, the job meets it again and reports the cell as failed
        return None, None
    return prepared.cell.key, str(Store(prepared.results, prepared.cell).folder.absolute())
