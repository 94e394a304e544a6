"""What stands in the files of the store: the fields, and the number of the form they have.

A reader names a file of another form in one line; it never guesses what a missing field meant.
"""

# No postponed annotations here: the names of the required fields are read from these classes.
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from vtprune.harness.request.errors import HarnessError

#: of ``result.json`` and ``timing.json``; raise it when a field changes its meaning or goes.
#: 1: the form before files said their number, with the same fields.
SCHEMA = 2


class Sample(TypedDict):
    """One line of ``samples.jsonl``: a sample that was asked."""

    doc_id: int
    answer: str | None
    error: str | None
    prompt: NotRequired[str]
    score: NotRequired[float | None]
    reference: NotRequired[Any]
    question_id: NotRequired[Any]
    image_id: NotRequired[Any]
    pruning: NotRequired[dict[str, Any]]
    visual_tokens: NotRequired[int]
    visual_kept: NotRequired[float]
    macs: NotRequired[dict[str, int]]
    macs_full: NotRequired[int]
    reused: NotRequired[str]


class Result(TypedDict):
    """``result.json``: a finished cell. ``directory`` is added by the reader."""

    schema: NotRequired[int]
    key: str
    model: str
    method: str
    ratio: float
    bench: str
    data: str
    engine: str
    score: float
    metric: str
    unit: str
    metrics: dict[str, float]
    n_samples: int
    n_failed: int
    counters: dict[str, Any]
    identity: dict[str, Any]
    provenance: dict[str, Any]
    finished: str
    directory: str
    higher_is_better: NotRequired[bool]
    scales: NotRequired[dict[str, float]]
    judge: NotRequired[str | None]
    checkpoint_id: NotRequired[str]
    reused: NotRequired[int]
    wall_s: NotRequired[float]


class Timing(TypedDict):
    """``timing.json``: both sides of a timing. ``directory`` is added by the reader."""

    schema: NotRequired[int]
    key: str
    model: str
    method: str
    ratio: float
    identity: dict[str, Any]
    batches: list[dict[str, Any]]
    provenance: dict[str, Any]
    finished: str
    budget: NotRequired[dict[str, Any] | None]
    directory: str
    reused: NotRequired[bool]


class Damaged(HarnessError):
    """A file of the store cannot be used; ``reason`` says why and what to do, without its name."""

    def __init__(self, file: Path, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file, self.reason = file, reason


def check(content: Any, form: type, file: Path, again: str) -> dict[str, Any]:
    """The content of a file, if it has the fields of ``form``.

    Args:
        again: what makes the file anew, for the message.

    Raises:
        Damaged: no mapping, of a newer form, or a field is missing.
    """
    if not isinstance(content, Mapping):
        raise Damaged(file, f"is no stored result; {again}")
    number = content.get("schema", 1)
    if not isinstance(number, int) or number > SCHEMA:
        raise Damaged(
            file, f"was written by a newer version (schema {number}, this one reads up to {SCHEMA})"
        )
    missing = sorted(form.__required_keys__ - {"directory"} - set(content))  # type: ignore[attr-defined]
    if missing:
        raise Damaged(file, f"was written by another version: it has no '{missing[0]}'; {again}")
    return dict(content)
