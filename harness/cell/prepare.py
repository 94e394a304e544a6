"""Check a composed config and turn it into what a run needs; no torch, no network unless asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vtprune.harness.cell import recipes
from vtprune.harness.cost import solver
from vtprune.harness.evaluation import prefetch
from vtprune.harness.evaluation.data import source
from vtprune.harness.request import benches, check, checkpoint, clip, device, presets
from vtprune.harness.request import identity as cells
from vtprune.harness.request.request import Request
from vtprune.harness.store.cell import Store


@dataclass(frozen=True)
class Prepared:
    """A checked request: the cell, and where to find what it names."""

    cell: cells.Cell
    request: Request
    checkpoint: checkpoint.Checkpoint
    runtime: device.Runtime
    data: source.DataSource
    notes: tuple[str, ...] = ()
    clip: clip.Found | None = None

    def load(self, on: str | None = None) -> Any:
        """The model, on the device ``on`` if one is named.

        Raises:
            ModelLoadError: it cannot be loaded; one line with the reason.
        """
        from vtprune.models.load import load

        where = self.runtime if on is None else replace(self.runtime, device=on)
        model = self.request.model
        return load({
            "path": self.checkpoint.path, "name": model.name,
            "chat_template": model.chat_template, "processor": self.settings.processor,
            **where.entries(),
        })  # fmt: skip

    @property
    def settings(self) -> presets.Settings:
        """What stands between a picture with its question and the model."""
        return presets.of(self.request.config, self.checkpoint.model_type)


def prepare(asked: Request, *, sweep: bool = False) -> Prepared:
    """Everything that can be known about a run before torch is imported.

    What is neither on this machine nor within reach is an error that names the command to fetch it.

    Args:
        asked: what the composed config says.
        sweep: part of a multirun, in which ``method=none`` meets ratios meant for the others.

    Raises:
        ConfigError: one line saying what is wrong with the request.
    """
    request, notes = _begun(asked, sweep)
    check.check_numbers(request.config)
    request = benches.seen_by_engine(request)
    source.check(request.data)
    if request.task == "calibrate":
        request = recipes.calibration_data(request)
    with prefetch.named(request):
        found = checkpoint.find(request.model)
        tower = clip.find(request) if request.task == "cell" else None
    presets.check_found(request.config, found.model_type)
    runtime = device.resolve(request.model, found.config)
    if request.task == "cell":
        request = recipes.resolve(request, found.fingerprint(), notes)
    with prefetch.named(request):
        data = _data(request)
    cell = cells.make(
        request,
        checkpoint=found.fingerprint(),
        model_type=found.model_type,
        runtime=runtime,
        data=data.identity,
        clip=tower.fingerprint if tower else None,
    )
    return Prepared(cell, request, found, runtime, data, tuple(notes), tower)


def without_checkpoint(
    asked: Request, *, sweep: bool = False
) -> tuple[Request, source.DataSource, list[str]]:
    """The checked request of a task that reads a benchmark and no model, its data, and notes.

    Raises:
        ConfigError: one line saying what is wrong with the request.
    """
    request, notes = _begun(asked, sweep)
    check.check_numbers(request.config)
    request = benches.seen_by_engine(request)
    source.check(request.data)
    with prefetch.named(request):
        return request, _data(request), notes


def _data(request: Request) -> source.DataSource:
    cache = (request.results / ".cache").resolve()
    return source.prepare(request.data, request.bench, request.entry, cache)


def dataless(asked: Request, *, sweep: bool = False) -> tuple[Request, list[str]]:
    """The checked request of a task that reads neither benchmark nor checkpoint, and notes.

    Raises:
        ConfigError: one line saying what is wrong with the request.
    """
    request, notes = _begun(asked, sweep)
    check.whole("batch_size", request.batch_size, 1)
    check.whole("seed", request.seed, 0)
    check.whole("text_tokens", request.text_tokens, 2)
    return request, notes


def _begun(asked: Request, sweep: bool) -> tuple[Request, list[str]]:
    """What every task begins with: it exists, its budget is solved, its ratio is a number."""
    notes: list[str] = []
    check.check_task(asked.task)
    presets.of(asked.config)
    return check.completed(solver.resolve(asked, notes), sweep, notes), notes


def where(
    config: dict[str, Any], choices: dict[str, str | None]
) -> tuple[str | None, str | None]:  # fmt: skip
    """Key and directory of a cell as this machine sees it; what is wrong with it, the job tells."""
    try:
        check.check_keys(config, choices)
        check.check_values(config)
        prepared = prepare(Request(config), sweep=True)
    except Exception:  # whatever it is, the job meets it again and reports the cell as failed
        return None, None
    return prepared.cell.key, str(Store(prepared.request.results, prepared.cell).folder.absolute())
