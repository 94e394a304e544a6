"""Check a composed config and turn it into what a run needs; no torch, no network unless asked."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtprune.harness import benches, calibrate, checkpoint, device, prefetch, text_tower
from vtprune.harness import cell as cells
from vtprune.harness.cost import solver
from vtprune.harness.data import source, subset
from vtprune.harness.errors import ConfigError, unknown
from vtprune.harness.known import flatten
from vtprune.harness.store import RETRY

#: methods.base has the same, behind torch, which has no place here
LABELLED_TOKENS = 576
TASKS = ("cell", "calibrate", "profile", "time")
DATALESS_TASKS = ("profile", "time")  # they need sizes of images, not a benchmark


@dataclass(frozen=True)
class Prepared:
    """A checked request: the cell, and where to find what it names."""

    cell: cells.Cell
    config: dict[str, Any]
    checkpoint: checkpoint.Checkpoint
    runtime: dict[str, Any]
    data: source.DataSource
    notes: tuple[str, ...] = ()
    clip: text_tower.Found | None = None

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
    _check_task(config["task"])
    config = solver.resolve(config, notes)
    config = {**config, "ratio": _ratio(config, sweep, notes)}
    _check_numbers(config)
    if config["force"] not in (False, True, RETRY):
        raise ConfigError(f"force must be false, true or {RETRY}: got {config['force']!r}")
    bench = benches.for_engine(config["bench"], config["engine"], config["model"])
    config = {**config, "bench": bench}
    source.check(config["data"])
    if config["task"] == "calibrate":
        config = calibrate.calibration_data(config)
    with prefetch.named(config):
        found = checkpoint.find(config["model"])
        clip = text_tower.find(config) if config["task"] == "cell" else None
    runtime = device.resolve(config["model"], found.config)
    if config["task"] == "cell":
        results = Path(config["paths"]["results"])
        config = calibrate.resolve(config, found.fingerprint(), results, notes)
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
        clip=clip.fingerprint if clip else None,
    )
    return Prepared(cell, config, found, runtime, data, tuple(notes), clip)


def dataless(config: dict[str, Any], *, sweep: bool = False) -> tuple[dict[str, Any], list[str]]:
    """The checked config of a task that reads neither benchmark nor checkpoint, and notes.

    Raises:
        ConfigError: one line saying what is wrong with the request.
    """
    notes: list[str] = []
    _check_task(config["task"])
    config = solver.resolve(config, notes)
    config = {**config, "ratio": _ratio(config, sweep, notes)}
    _whole("batch_size", config["batch_size"], 1)
    _whole("seed", config["seed"], 0)
    _whole("text_tokens", config["text_tokens"], 2)
    return config, notes


def _check_task(task: str) -> None:
    if task not in TASKS:
        raise ConfigError(unknown("task", task, TASKS))


def _ratio(config: dict[str, Any], sweep: bool, notes: list[str]) -> float:
    ratio, method = config["ratio"], config["method"]["name"]
    if method == "text_only":
        return _everything(ratio, sweep, notes)
    if (label := config["method"].get("nominal")) is not None:
        return _labelled(label, ratio, notes)
    if ratio is None:
        if method != "none":
            raise ConfigError(f"method={method} needs a ratio in [0, 1), e.g. ratio=0.9")
        return 0.0
    number = isinstance(ratio, (int, float)) and not isinstance(ratio, bool)
    if not number or not math.isfinite(ratio) or not 0 <= ratio < 1:
        raise ConfigError(f"ratio must be a number in [0, 1): got {ratio!r}")
    if method == "none" and ratio != 0:
        if not sweep:
            raise ConfigError(f"method=none removes nothing, so ratio={ratio} cannot be met; "
                              "leave ratio out, or choose a method")  # fmt: skip
        notes.append(f"method=none has no ratio: ratio={ratio} is left out, this is the baseline")
        return 0.0
    return float(ratio)


def _everything(ratio: Any, sweep: bool, notes: list[str]) -> float:
    """The ratio of the control without a picture, whatever the others of a sweep have."""
    if ratio not in (None, 1):
        if not sweep:
            raise ConfigError(f"method=text_only leaves the picture out, so ratio={ratio} cannot "
                              "be met; leave ratio out")  # fmt: skip
        notes.append(f"method=text_only has no ratio: ratio={ratio} is left out, this is 1")
    return 1.0


def _labelled(label: Any, ratio: Any, notes: list[str]) -> float:
    """The ratio that a published label stands for, which is not what such a run removes."""
    tokens = LABELLED_TOKENS
    if not isinstance(label, int) or isinstance(label, bool) or not 0 < label < tokens:
        raise ConfigError(f"method.nominal must be a label in (0, {tokens}), got {label!r}")
    named = round(1 - label / tokens, 4)
    if ratio is not None and abs(ratio - named) > 0.001:
        raise ConfigError(f"method.nominal={label} is ratio {named} by its label, not {ratio}; "
                          "leave ratio out")  # fmt: skip
    notes.append(f"nominal={label}: ratio={named} is the label; `removed` says what was removed")
    return named


def _check_numbers(config: dict[str, Any]) -> None:
    bench = config["bench"]
    _whole("batch_size", config["batch_size"], 1)
    _whole("decoding.max_new_tokens", config["decoding"]["max_new_tokens"], 1)
    _whole("seed", config["seed"], 0)
    subset.check(bench)
    limit, indices = bench.get("limit"), bench.get("indices")
    if limit is not None:
        _whole("bench.limit", limit, 1)
    if indices is None:
        return
    if limit is not None:
        raise ConfigError("give bench.limit or bench.indices, not both")
    if not isinstance(indices, list) or not indices:
        raise ConfigError("bench.indices must be a list of row numbers, e.g. 'bench.indices=[0,5]'")
    for index in indices:
        _whole("bench.indices", index, 0)
    if len(set(indices)) != len(indices):
        raise ConfigError("bench.indices names a row twice")


def _whole(name: str, value: Any, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigError(f"{name} must be a whole number >= {low}: got {value!r}")


def unknown_keys(config: dict[str, Any], known: Iterable[str]) -> list[str]:
    """Dotted keys of ``config`` that are not among ``known`` (dotted keys, groups included)."""
    allowed = set(known)
    return [key for key in flatten(config) if key not in allowed]
