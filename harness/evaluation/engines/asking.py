"""Ask an answerer in batches, keep every sample at once, and never turn an error into an answer."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vtprune.harness.evaluation.engines.base import (
    Answer,
    Answerer,
    Question,
    SampleLog,
    ShareAnswered,
)
from vtprune.harness.request.errors import HarnessError, one_line

GIVE_UP_AFTER = 8  # samples failing in a row from the start: the cell itself is broken
# Control characters crash spreadsheet writers of some tasks, after all the work is done.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


def clean(text: str, until: Iterable[str] = ()) -> str:
    """Cut an answer at the first stop string; strip control characters and outer space."""
    for stop in until:
        if stop:
            text = text.partition(stop)[0]
    return _CONTROL.sub("", text).strip()


@dataclass
class Asker:
    """Sends questions that have no journal entry yet and journals what comes back.

    A batch that raises is asked again one by one, so that one bad sample does not take its
    neighbours with it; a sample that fails alone is recorded with ``error`` and has no answer.
    """

    answerer: Answerer
    journal: SampleLog
    answered: dict[int, dict[str, Any]]
    batch_size: int
    progress: Callable[[dict[str, Any]], None]
    share: tuple[int, int] | None = None

    def ask(self, questions: Sequence[Question]) -> dict[int, dict[str, Any]]:
        """Journal entry of every question, by doc_id."""
        entries: dict[int, dict[str, Any]] = {}
        rank, world = self.share or (0, 1)
        # Whole batches are shared out, so every batch is the one a single process would make.
        for batch in batches(questions, self.batch_size)[rank::world]:
            # Batches are cut from the full list, so a resumed run batches like an unbroken one.
            missing = [q for q in batch if q.doc_id not in self.answered]
            fresh = zip(missing, self._answers(missing), strict=True) if missing else ()
            for question, entry in fresh:
                self.journal.append(entry)
                self.answered[question.doc_id] = entry
                self._give_up_if_hopeless()
            for question in batch:
                entry = self.answered[question.doc_id]
                if entry["prompt"] != question.prompt:
                    raise HarnessError(
                        f"sample {question.doc_id}: the stored prompt is not the one asked now; "
                        "run with force=true"
                    )
                entries[question.doc_id] = entry
                self.progress(entry)
        if self.share:
            raise ShareAnswered
        return entries

    def _answers(self, batch: Sequence[Question]) -> list[dict[str, Any]]:
        try:
            return self._once(batch)
        except HarnessError:
            raise
        except Exception as error:  # the one place where a failing sample is caught
            if len(batch) == 1:
                return [_entry(batch[0], Answer(None, error=one_line(error)))]
            return [entry for question in batch for entry in self._answers([question])]

    def _once(self, batch: Sequence[Question]) -> list[dict[str, Any]]:
        start = time.perf_counter()
        answers = self.answerer.answer(batch)
        if len(answers) != len(batch):
            raise HarnessError(f"{len(batch)} questions got {len(answers)} answers")
        wall = time.perf_counter() - start
        for answer in answers:
            answer.extra.setdefault("latency_s", round(wall / len(batch), 6))
            answer.extra.setdefault("batch_rows", len(batch))
        return [_entry(q, a) for q, a in zip(batch, answers, strict=True)]

    def _give_up_if_hopeless(self) -> None:
        if any(not entry["error"] for entry in self.answered.values()):
            return  # stops at the first one: this is asked after every sample
        entries = list(self.answered.values())
        if len(entries) >= GIVE_UP_AFTER:
            raise HarnessError(
                f"the first {len(entries)} samples all failed; the last one: {entries[-1]['error']}"
            )


def _entry(question: Question, answer: Answer) -> dict[str, Any]:
    text = None if answer.text is None else clean(answer.text, question.until)
    return {
        "doc_id": question.doc_id,
        "sample_id": question.sample_id,
        "prompt": question.prompt,
        "answer": text,
        "error": answer.error,
        "prompt_tokens": answer.prompt_tokens,
        "generated_tokens": answer.generated_tokens,
        **answer.extra,
    }


def batches(questions: Sequence[Question], size: int) -> list[list[Question]]:
    """Batches of questions with the same stop strings and length limit, in order."""
    groups: dict[tuple[Any, ...], list[Question]] = {}
    for question in questions:
        kind = (question.until, question.max_new_tokens)
        groups.setdefault(kind, []).append(question)
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]
