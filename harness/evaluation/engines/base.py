"""What an engine and the thing that answers its questions say to each other.

    engine  --- list[Question] --->  answerer          (one batch)
    engine  <-- list[Answer]   ---

The engine owns prompts, images and scores; the answerer owns model, pruning and clocks. A test
passes an oracle as answerer and checks the engine alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vtprune.harness.evaluation.data.source import DataSource
from vtprune.harness.request.request import Bench, Task


@dataclass(frozen=True)
class Question:
    """One prompt as the engine words it.

    Attributes:
        doc_id: row in the benchmark's full split, whatever subset is run.
        sample_id: the same with the task's name, seed material of stochastic methods.
        prompt: text, exactly as the engine's task builds it.
        images: decodes the images; called per batch, so that a benchmark never sits in memory.
        until: stop strings.
        max_new_tokens: the task's own limit, None where it has none.
    """

    doc_id: int
    sample_id: str
    prompt: str
    images: Callable[[], Sequence[Any]]
    until: tuple[str, ...] = ()
    max_new_tokens: int | None = None


@dataclass
class Answer:
    """What came back: a text, or the reason why there is none. ``extra`` goes to the journal."""

    text: str | None
    error: str | None = None
    generated_tokens: int | None = None
    prompt_tokens: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class Answerer(Protocol):
    """Anything that answers a batch: the model, or an oracle in a test."""

    def answer(self, batch: Sequence[Question]) -> list[Answer]:
        """One answer per question, in order. May raise: the engine then asks one by one."""
        ...


class SampleLog(Protocol):
    """Where finished samples go at once, see ``vtprune.harness.store.cell.Journal``."""

    def append(self, entry: dict[str, Any]) -> None: ...


class ShareAnswered(Exception):
    """Raised out of an engine when this process has answered its share and must not score."""


@dataclass(frozen=True)
class Job:
    """What an engine is asked to do.

    Attributes:
        bench: the benchmark as this engine sees it.
        engine: what it is in this engine.
        data: where the rows come from.
        batch_size: prompts per batch.
        journal: receives every answered sample at once.
        answered: entries of an earlier, interrupted run by doc_id; not asked again.
        scratch: directory for files the engine insists on writing.
        on_progress: called with (done, total, running score or None).
        share: (rank, world): answer every world-th batch only, then raise :class:`ShareAnswered`.
    """

    bench: Bench
    engine: Task
    data: DataSource
    batch_size: int
    journal: SampleLog
    answered: Mapping[int, Mapping[str, Any]]
    scratch: Path
    on_progress: Callable[[int, int, float | None], None] = lambda done, total, score: None
    share: tuple[int, int] | None = None


@dataclass
class Outcome:
    """All metrics of the answered samples, and the samples with reference and score."""

    metrics: dict[str, float]
    samples: list[dict[str, Any]]


class Engine(Protocol):
    """Runs one benchmark."""

    def run(self, job: Job, answerer: Answerer) -> Outcome: ...
