"""Throughput and speed-up of a table's rows: from the timing pass (``task=time``), nothing else.

A timing holds both sides, measured in turn in one process: the method and the unpruned model. So a
speed-up is always a quotient within one run on one device. What may differ is one timing from the
next, or a timing from the scores beside it; that is marked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from vtprune.harness.cost.timing.run import AGREEMENT
from vtprune.harness.reporting.tables import lookup, spec
from vtprune.harness.reporting.tables.lookup import DONE, IMPOSSIBLE, MISSING, Found
from vtprune.harness.reporting.tables.spec import Row, Table
from vtprune.harness.request import compose as wanted
from vtprune.harness.request import presets
from vtprune.harness.request.errors import ConfigError
from vtprune.harness.request.identity import canonical_json
from vtprune.harness.store import index

COLUMNS = ("throughput", "speedup")
OTHER_THAN_SCORES, UNSETTLED = "f", "s"
BATCH = 1  # the papers' figure
#: settings of a table that say something about a timing; the others are about answers
_OPTIONS = ("model", "engine", "timing", "method.", "budget.", "image_size", "text_tokens")


@dataclass(frozen=True)
class Wanted:
    """One timing of the table, before it is known whether it exists."""

    row: Row
    overrides: Mapping[str, Any]
    config: Mapping[str, Any] = field(compare=False)

    @cached_property
    def asked(self) -> dict[str, Any]:
        """What must be equal for a stored timing to be this one."""
        return _asked(self.config, wanted.method_of(dict(self.config)))

    @property
    def arguments(self) -> list[str]:
        """The timing as command-line arguments, shell quoting left to the caller."""
        return spec.arguments(self.overrides)


@dataclass
class Timed:
    """What the store holds for one wanted timing."""

    wanted: Wanted
    status: str
    result: Mapping[str, Any] | None = None
    reason: str = ""
    marks: list[str] = field(default_factory=list)

    @property
    def batch(self) -> Mapping[str, Any]:
        """Both sides at batch 1."""
        assert self.result is not None
        return next(b for b in self.result["batches"] if b["batch_size"] == BATCH)


def is_shown(table: Table) -> bool:
    """True if the table has a column of speed."""
    return any(column in table.extras for column in COLUMNS)


def timings(table: Table) -> list[Wanted]:
    """The timings a table wants: one per pruned row; each has the unpruned model beside it.

    Raises:
        ConfigError: the table has no column of speed.
    """
    if not is_shown(table):
        raise ConfigError(f"table {table.name} has no column of speed, so nothing of it is timed")
    settings = {k: v for k, v in table.settings.items() if k.startswith(_OPTIONS)}
    made: dict[str, Wanted] = {}
    for row in table.rows:
        if row.is_baseline:
            continue
        # Seeds of one row take equally long: the first stands for all.
        overrides = {"task": "time", **spec.overrides(settings, row, row.runs[0])}
        one = Wanted(row, overrides, wanted.compose(overrides))
        made.setdefault(row.key, one)
    return list(made.values())


def _asked(config: Mapping[str, Any], method: Mapping[str, Any]) -> dict[str, Any]:
    timing = config["timing"]
    return {
        "method": method,
        "images": [_size(text) for text in timing["images"] or [config["image_size"]]],
        "text_tokens": config["text_tokens"],
        "new_tokens": timing["new_tokens"],
        "clock": timing.get("clock", "wall"),
        "processor": dict(presets.of(config).processor),
    }


def _size(text: Any) -> str:
    return str(text).strip().lower().replace("×", "x")


def _stored_as_asked(stored: Mapping[str, Any], budgets: bool) -> dict[str, Any]:
    identity = stored["identity"]
    method = dict(identity["method"])
    if budgets and stored.get("budget"):
        method |= {**stored.get("moved_from", {}), "ratio": stored["budget"]}
    return {
        "method": method,
        "images": identity["images"],
        "text_tokens": identity["text_tokens"],
        "new_tokens": identity["timing"]["new_tokens"],
        "clock": identity["timing"].get("clock", "wall"),
        "processor": identity.get("processor", {}),
    }


def find(table: Table, results: Path, found: Sequence[Found] = ()) -> list[Timed]:
    """Every timing of the table with its status and marks; none if no column shows speed.

    Args:
        found: cells of the table, with whose dtype, kernel and device the timings are compared.
    """
    if not is_shown(table):
        return []
    every = timings(table)
    budgets = any(isinstance(one.asked["method"].get("ratio"), dict) for one in every)
    stored: dict[str, list[Mapping[str, Any]]] = {}
    for result in index.timings(results):
        stored.setdefault(canonical_json(_stored_as_asked(result, budgets)), []).append(result)
    made = [_status(one, stored.get(canonical_json(one.asked), ())) for one in every]
    _mark(made, found)
    return made


def _status(one: Wanted, stored: Iterable[Mapping[str, Any]]) -> Timed:
    reason = lookup.never(one.config, one.asked["method"].get("ratio"), one.row.ratio)
    if reason:
        return Timed(one, IMPOSSIBLE, reason=reason)
    model = one.config["model"]
    fitting = [
        result
        for result in stored
        if _same_model(result, model) and any(b["batch_size"] == BATCH for b in result["batches"])
    ]
    if not fitting:
        return Timed(one, MISSING)
    return Timed(one, DONE, max(fitting, key=_weight))


def _weight(result: Mapping[str, Any]) -> Any:
    """The longest timing counts, of equally long ones the newest."""
    return result["identity"]["timing"]["repeats"], result["finished"], result["key"]


def _same_model(result: Mapping[str, Any], model: Mapping[str, Any]) -> bool:
    timed = result["identity"]["model"]
    if result["model"] != model["name"]:
        return False
    if timed.get("weights", "checkpoint") != model.get("weights", "checkpoint"):
        return False
    here = lookup.fingerprint(model)
    return here is None or timed.get("checkpoint", here) == here


def _mark(timed: Sequence[Timed], found: Sequence[Found]) -> None:
    """Mark timings that are not like most of the table's, or not like their row's scores."""
    done = [one for one in timed if one.result]
    odd = {
        "a": lookup.odd(done, lambda r: r["provenance"]["versions"]),
        "b": lookup.odd(done, _runtime),
        "d": lookup.odd_code(done),
    }
    for one in done:
        one.marks = [mark for mark, among in odd.items() if id(one) in among]
        scored = [f.result for f in found if f.result and f.wanted.row.key == one.wanted.row.key]
        if any(_kernel(result) != _kernel(one.result or {}) for result in scored):
            one.marks.append(OTHER_THAN_SCORES)
        if any(abs(_agreement(one, side) - 1) > AGREEMENT for side in ("baseline", "pruned")):
            one.marks.append(UNSETTLED)


def _agreement(timed: Timed, side: str) -> float:
    return timed.batch[side]["sum_of_stages_over_end_to_end"]


def _runtime(result: Mapping[str, Any]) -> Any:
    return [result["identity"]["model"], result["provenance"]["hardware"],
            result["provenance"].get("torch_threads")]  # fmt: skip


def _kernel(result: Mapping[str, Any]) -> list[Any]:
    model = result["identity"]["model"]
    names = ("dtype", "attention", "device", "checkpoint")
    if "weights" in model:  # random ones are as much work
        names = names[:3]
    return [model.get(name) for name in names]


def rounds(timed: Timed) -> int:
    """Measured rounds: those asked for, or more until the clocks agreed."""
    asked = (timed.result or {})["identity"]["timing"]["repeats"]
    return int(timed.batch["pruned"].get("rounds", asked))


def rate(timed: Timed, side: str = "pruned") -> Mapping[str, float]:
    """Samples per second of one side: ``median``, ``low``, ``high``."""
    return timed.batch[side]["samples_per_s"]


def unpruned(timed: Sequence[Timed]) -> tuple[float, float, float] | None:
    """Samples per second of the unpruned model: median, least and most over the timings.

    Timings on another device or with other versions than most are left out; they carry a mark.
    """
    usual = [one for one in timed if one.result and not {"a", "b", "d"} & set(one.marks)]
    rates = [rate(one, "baseline")["median"] for one in usual]
    return (median(rates), min(rates), max(rates)) if rates else None


def speedup(timed: Timed) -> float | None:
    """How much sooner a whole answer is there than from the unpruned model in the same run."""
    return timed.batch["comparison"]["measured"]["end_to_end"]


def conditions(timed: Sequence[Timed]) -> str:
    """What was timed, in one line for the notes of a table."""
    asked, done = timed[0].wanted.asked, [one for one in timed if one.result]
    made = sorted({rounds(one) for one in done})
    devices = sorted({one.result["provenance"]["hardware"]["device"] for one in done if one.result})
    told = [
        "samples/s: timing pass at batch 1",
        f"images {', '.join(asked['images'])} among {asked['text_tokens']} text tokens",
        f"{asked['new_tokens']} new tokens",
    ]
    if made:
        most = f" to {made[-1]}" if len(made) > 1 else ""
        told.append(f"median of {made[0]}{most} rounds")
        told.append(f"on {', '.join(devices)}")
    if asked["clock"] == "cpu":
        told.append("CPU time, not wall time")
    return ", ".join(told) + "; speed-up: of the whole answer, against the unpruned model in " \
        "the same run"  # fmt: skip


def todo(timed: Sequence[Timed]) -> list[Timed]:
    """Timings still to be made."""
    return [one for one in timed if one.status == MISSING]
