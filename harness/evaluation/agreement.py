"""Do two engines score the same answers alike? Answers are given, no model is involved.

Both engines are asked about the same drawn rows and get the same answers, so every difference is a
scorer's. Where the second engine turns a question's options round, the same option is chosen.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtprune.harness.evaluation import engines
from vtprune.harness.evaluation.data import mini, source, tables
from vtprune.harness.evaluation.engines.base import Answer, Job, Question
from vtprune.harness.request import benches
from vtprune.harness.request.request import Request
from vtprune.harness.store.journal import Journal

ENGINES = ("lmms_eval", "vlmevalkit")
FORMS: dict[str, Callable[[str], str]] = {
    "bare": lambda text: text,
    "full stop": lambda text: f"{text}.",
    "lower case": str.lower,
    "sentence": lambda text: f"The answer is {text}.",
}
LETTERS = "ABCDE"
WRONG = "xyzzy"


@dataclass
class Given:
    """Answers by row of the benchmark."""

    answer_to: Callable[[Question], str]

    def answer(self, batch: Sequence[Question]) -> list[Answer]:
        return [Answer(self.answer_to(question)) for question in batch]


@dataclass(frozen=True)
class Agreement:
    """Scores of the same answers from both engines, in the benchmark's unit."""

    bench: str
    form: str
    rows: int
    scores: Mapping[str, float]
    unit: str

    @property
    def difference(self) -> float:
        first, second = (self.scores[engine] for engine in ENGINES)
        return second - first


def right_answers(bench: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the reference of each hub row is, as a model would say it."""
    read = {
        "textvqa": lambda row: row["answers"][0],
        "docvqa": lambda row: row["answers"][0],
        "vizwiz": lambda row: row["answers"][0],
        "ocrbench": lambda row: row["answer"][0],
        "scienceqa": lambda row: LETTERS[row["answer"]],
    }
    return [read.get(bench, lambda row: row["answer"])(row) for row in rows]


def two_thirds(answers: Sequence[str], form: str) -> list[str]:
    """The right answers in one form, every third one wrong."""
    return [WRONG if i % 3 == 2 else FORMS[form](text) for i, text in enumerate(answers)]


def compare(
    config: dict[str, Any], form: str, answers: Sequence[str] | None = None,
    samples: int | None = None,
) -> Agreement:  # fmt: skip
    """Score answers to a drawn benchmark with both engines.

    Args:
        config: entry of conf/bench that names both engines.
        form: how the right answers are worded, see ``FORMS``; a label if ``answers`` are given.
        answers: answer of each row of the benchmark; None: two thirds right ones.
        samples: rows to draw; None: the generator's own number.
    """
    requests = {engine: _request(config, engine, samples) for engine in ENGINES}
    bench, wanted = requests["lmms_eval"].bench, requests["lmms_eval"].entry.config or "data"
    named = bench.mini or bench.name
    made = mini.tables(named, 0, samples)
    rows = next(table.rows for table in made if table.config == wanted)
    if answers is None:
        answers = two_thirds(right_answers(named, rows), form)
    origins = tables.origins(named, made)
    given = {
        "lmms_eval": Given(lambda question: answers[question.doc_id]),
        "vlmevalkit": Given(lambda question: _turned(answers, origins[question.doc_id])),
    }
    scores = {engine: _score(requests[engine], given[engine]) for engine in ENGINES}
    return Agreement(bench.name, form, len(rows), scores, bench.unit)


def _turned(answers: Sequence[str], origin: tables.Origin) -> str:
    """The answer to a row whose options were turned: the letter of the same option."""
    text = answers[origin.row]
    letters = LETTERS[: origin.options]
    if not origin.turn:
        return text
    for upper in (True, False):
        for place, letter in enumerate(letters if upper else letters.lower()):
            moved = letters[(place - origin.turn) % origin.options]
            # Alone, or where it stands in one of the forms: at the end.
            if text.rstrip(".").rpartition(" ")[2] == letter:
                head, tail = text.rstrip(".").rpartition(" ")[:2], text[len(text.rstrip(".")) :]
                return "".join(head) + (moved if upper else moved.lower()) + tail
    return text


def _request(config: dict[str, Any], engine: str, samples: int | None) -> Request:
    return benches.seen_by_engine(Request({
        "bench": config, "engine": {"name": engine}, "model": {"prompt": {"vlmevalkit": "llava"}},
        "data": {"source": "mini", "seed": 0, "samples": samples},
    }))  # fmt: skip


def _score(request: Request, given: Given) -> float:
    bench, entry = request.bench, request.entry
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Journal(folder / "samples.jsonl") as journal:
            job = Job(
                bench=bench,
                engine=entry,
                data=source.prepare(request.data, bench, entry, folder),
                batch_size=32,
                journal=journal,
                answered={},
                scratch=folder / "engine",
            )
            outcome = engines.get(request.engine).run(job, given)
    return outcome.metrics[bench.metric] * bench.scale
