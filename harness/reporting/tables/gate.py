"""The baseline gate: is the unpruned model where others found it?

A pruned score means something relative to a baseline one can believe. After an unpruned run its
metrics are compared with the published ones (``results/published/baselines.csv``); a pruned row
whose baseline is missing, off, or not comparable with anything published carries a mark in tables.
No torch here: tables read only the store.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vtprune import places
from vtprune.harness.request import presets
from vtprune.harness.request.identity import canonical_json
from vtprune.harness.store import index

PUBLISHED = places.PUBLISHED
MARK = "†"
PASSED, FAILED, PARTIAL, UNKNOWN, NOT_RUN = "passed", "failed", "partial", "unknown", "not run"
ELSEWHERE = "another preset"
_MEANING = {
    FAILED: "the unpruned run is outside the tolerance of the published numbers",
    PARTIAL: "the unpruned run covers a part of the benchmark or has failed samples",
    ELSEWHERE: "the published numbers were made under another model.preset, which the gate names",
    UNKNOWN: "no comparable published number for this model and benchmark",
    NOT_RUN: "no unpruned run with the same settings (run it with method=none)",
}


@dataclass(frozen=True)
class Reference:
    """One published number. ``metrics`` are alternatives when the source does not say which.

    ``preset`` is the ``model.preset`` it was made under, empty where the source does not say.
    """

    metrics: tuple[str, ...]
    value: float
    unit: str
    tolerance: float
    decides: bool
    protocol: str
    source: str
    note: str
    preset: str = ""


@dataclass(frozen=True)
class Comparison:
    """A reference beside the nearest measured value, which was measured under ``preset``."""

    reference: Reference
    metric: str
    measured: float
    preset: str = ""

    @property
    def alike(self) -> bool:
        """Made under the same settings, as far as the source says."""
        return self.reference.preset in ("", self.preset)

    @property
    def decides(self) -> bool:
        """Judges the run; a number of another preset only stands beside it."""
        return self.reference.decides and self.alike

    @property
    def within(self) -> bool:
        return abs(self.measured - self.reference.value) <= self.reference.tolerance + 1e-9


@dataclass(frozen=True)
class Verdict:
    """What the gate says about one unpruned result."""

    status: str
    comparisons: tuple[Comparison, ...] = ()

    def lines(self) -> list[str]:
        """The verdict for people, the deciding numbers first."""
        ordered = sorted(self.comparisons, key=lambda c: not c.decides)
        told = [_told(comparison, judged=self.status != PARTIAL) for comparison in ordered]
        reason = f": {_MEANING[self.status]}" if self.status in _MEANING else ""
        return [f"baseline gate: {self.status}{reason}", *told]


def _told(comparison: Comparison, judged: bool) -> str:
    reference = comparison.reference
    off = comparison.measured - reference.value
    if reference.decides and not comparison.alike:
        verdict = f"model.preset={reference.preset}, this run: {comparison.preset}"
    elif not reference.decides:
        verdict = "for information"
    elif not judged:  # of a few samples no difference says anything about the whole
        verdict = "not judged"
    else:
        verdict = "within" if comparison.within else "OUTSIDE"
        verdict += f" {reference.tolerance:g}"
    note = f"; {reference.note}" if reference.note else ""
    return (
        f"  {comparison.metric}: measured {comparison.measured:.2f}, published "
        f"{reference.value:.2f} {reference.unit} ({off:+.2f}, {verdict}) "
        f"[{reference.source}, {reference.protocol}{note}]"
    )


def judge(result: Mapping[str, Any], published: Path = PUBLISHED) -> Verdict:
    """The verdict on an unpruned result of the store.

    A number decides if its protocol is ours. One deciding number within its tolerance is enough:
    the literature quotes more than one baseline for some models.
    """
    known = _published(published)
    where = (result.get("checkpoint_id"), _data(result), result["bench"], result["engine"])
    measured = {
        name: value * result["scales"][name]
        for name, value in result["metrics"].items()
        if name in result.get("scales", {})
    }
    compared = []
    for reference in known.get(where, ()):
        there = [name for name in reference.metrics if name in measured]
        if there:
            nearest = min(there, key=lambda name: abs(measured[name] - reference.value))
            compared.append(Comparison(reference, nearest, measured[nearest], preset(result)))
    return Verdict(_status(result, compared), tuple(compared))


def _data(result: Mapping[str, Any]) -> str:
    """The data's name in the published files; drawn data only count if they are the very same."""
    if result["data"] != "mini":
        return str(result["data"])
    return f"mini:{result['identity'].get('data', {}).get('content')}"


def _status(result: Mapping[str, Any], compared: Sequence[Comparison]) -> str:
    deciding = [comparison for comparison in compared if comparison.decides]
    if not deciding:
        return ELSEWHERE if any(one.reference.decides for one in compared) else UNKNOWN
    if covers_a_part(result) or result["n_failed"]:
        return PARTIAL
    return PASSED if any(comparison.within for comparison in deciding) else FAILED


def covers_a_part(result: Mapping[str, Any]) -> bool:
    """True if not all rows of the benchmark were asked."""
    asked = result["identity"]["bench"]
    return any(asked.get(key) is not None for key in ("limit", "indices", "subset"))


@cache
def _published(folder: Path) -> dict[tuple[Any, ...], list[Reference]]:
    found: dict[tuple[Any, ...], list[Reference]] = {}
    for file in sorted(folder.glob("*baselines.csv")):
        with file.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                where = (row["checkpoint"], row["data"], row["bench"], row["engine"])
                found.setdefault(where, []).append(_reference(row))
    return found


def _reference(row: Mapping[str, str]) -> Reference:
    return Reference(
        metrics=tuple(row["metric"].split("|")),
        value=float(row["value"]),
        unit=row["unit"],
        tolerance=float(row["tolerance"]),
        decides=row["decides"] == "yes",
        protocol=row["protocol"],
        source=row["source"],
        note=row["note"],
        preset=row.get("preset") or "",
    )


def settings(result: Mapping[str, Any]) -> str:
    """Preset of a stored result, with the processor's options that were set; for people."""
    options = result["identity"].get("processor") or {}
    return presets.Settings(preset(result), options).shown()


def preset(result: Mapping[str, Any]) -> str:
    """``model.preset`` of a stored result; those made before there were presets had this one."""
    return str(result.get("preset", presets.CHECKPOINT))


def settings_lines(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the results were made under, a line each; nothing where it is the checkpoint alone."""
    found = sorted({settings(result) for result in results} - {presets.CHECKPOINT})
    return [f"model.preset={text}" for text in found]


def is_baseline(result: Mapping[str, Any]) -> bool:
    """True for an unpruned run."""
    return result["identity"]["method"] == {"name": "none"}


def baseline_key(result: Mapping[str, Any]) -> str:
    """Key of the unpruned cell with the same model, data, engine, batch and precision."""
    identity = result["identity"]
    # The text tower that a method reads the question with is no part of the unpruned model.
    model = {k: v for k, v in identity.get("model", {}).items() if k != "clip"}
    unpruned = {**identity, "method": {"name": "none"}, "model": model}
    return hashlib.sha256(canonical_json(unpruned).encode()).hexdigest()


def baseline(result: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The finished unpruned cell under the very conditions of a result; itself if it is one.

    It lies beside it in the store, under the key it must have; nothing else is searched.
    """
    if is_baseline(result):
        return result
    beside = Path(result["directory"]).parent / f"none-0-{baseline_key(result)[:8]}"
    stored = index.read(beside)
    return None if stored is None else stored.result


def status(result: Mapping[str, Any], published: Path = PUBLISHED) -> str:
    """Gate status of a stored result, through the unpruned cell it belongs to."""
    return status_of(baseline(result), published)


def status_of(unpruned: Mapping[str, Any] | None, published: Path = PUBLISHED) -> str:
    """Gate status of an unpruned cell, or of there being none."""
    return NOT_RUN if unpruned is None else judge(unpruned, published).status


def mark(status: str) -> str:
    """What stands behind a pruned score whose baseline is not confirmed."""
    return "" if status == PASSED else MARK


def explanations(statuses: Iterable[str]) -> list[str]:
    """What the mark means, one line for each reason that occurs."""
    there = set(statuses)
    return [f"{MARK} {_MEANING[s]}." for s in _MEANING if s in there]
