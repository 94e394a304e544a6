"""Jobs and answerers for tests of the engines: no model, mini data in a temporary folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vtprune.harness.evaluation.data import source
from vtprune.harness.evaluation.engines.base import Answer, Job, Question
from vtprune.harness.request.request import Bench, Data, Task
from vtprune.harness.store.journal import Journal, read_journal

ROOT = Path(__file__).resolve().parent.parent


def bench_config(name: str, **changes: Any) -> dict[str, Any]:
    """conf/bench/<name>.yaml as plain data."""
    return {
        **yaml.safe_load((ROOT / "conf/bench" / f"{name}.yaml").read_text(encoding="utf-8")),
        **changes,
    }


def job(
    folder: Path,
    journal: Journal,
    samples: int = 12,
    batch_size: int = 4,
    seed: int = 0,
    cache: Path | None = None,
    **bench_changes: Any,
) -> Job:
    """A job on mini TextVQA whose journal lies in ``folder``; continues what is there."""
    given = bench_config("textvqa", **bench_changes)
    bench, engine = Bench.of(given), Task.of(given["engines"]["lmms_eval"])
    asked = Data("mini", seed, samples)
    earlier = read_journal(folder / "samples.jsonl")
    return Job(
        bench=bench,
        engine=engine,
        data=source.prepare(asked, bench, engine, cache or folder / "cache"),
        batch_size=batch_size,
        journal=journal,
        answered={entry["doc_id"]: entry for entry in earlier if not entry["error"]},
        scratch=folder / "engine",
    )


def references(folder: Path) -> list[dict[str, Any]]:
    """The rows of the mini data, without images."""
    import pyarrow.parquet

    (file,) = folder.rglob("validation-*.parquet")
    return pyarrow.parquet.read_table(file).drop(["image"]).to_pylist()


@dataclass
class Scripted:
    """Answers by a function of the question; remembers what it was asked."""

    answer_to: Callable[[Question], str]
    asked: list[Question] = field(default_factory=list)

    def answer(self, batch: Sequence[Question]) -> list[Answer]:
        self.asked += batch
        return [Answer(self.answer_to(question), generated_tokens=1) for question in batch]


def oracle(rows: Sequence[dict[str, Any]]) -> Scripted:
    """Gives the reference of every question."""
    return Scripted(lambda question: rows[question.doc_id]["answers"][0])


def entries(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    ]
