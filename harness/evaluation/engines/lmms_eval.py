"""lmms-eval as an engine: its tasks word the prompts and score, our answerer runs the model.

No fork and no lasting patch. What is worked around, and why, stands at each place; the facts were
checked against lmms-eval 0.7.3.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from vtprune.harness.evaluation import quiet
from vtprune.harness.evaluation.engines import lmms_data, lmms_scores
from vtprune.harness.evaluation.engines.asking import Asker
from vtprune.harness.evaluation.engines.base import Answerer, Job, Outcome, Question
from vtprune.harness.evaluation.engines.groups import scorable
from vtprune.harness.evaluation.engines.lmms_packages import (
    ConfigurableTask,
    GenerationResult,
    TokenCounts,
    evaluator_module,
    lmms,
    simple_evaluate,
    task_module,
)
from vtprune.harness.request.errors import HarnessError, one_line


class LmmsEval:
    """Engine ``lmms_eval``."""

    def run(self, job: Job, answerer: Answerer) -> Outcome:
        """Answer and score one task; failed samples are left out of every metric."""
        quiet.loguru_to_stderr()
        quiet.no_progress_bars()
        with _no_bars():
            rows, groups = lmms_data.rows(job)
            adapter, result = self._evaluate(job, answerer, rows)
            entries, asked = adapter.entries, result["samples"][job.engine.task]
            answered = scorable(rows, groups, entries)
            if not answered:
                reason = next(e["error"] for e in entries.values() if e["error"])
                raise HarnessError(f"no sample was answered: {reason}")
            if len(answered) < len(rows):
                # The evaluator needs one answer per request and would score a failed sample as an
                # empty answer. So it is asked again about the answered ones only; the answers come
                # from the journal, and its own aggregation sees nothing else.
                adapter, result = self._evaluate(job, _Replay(), answered)
        scored = lmms_scores.Scored(job, adapter.task, result, answered)
        return lmms_scores.outcome(scored, rows, entries, asked)

    def _evaluate(
        self, job: Job, answerer: Answerer, rows: Sequence[int]
    ) -> tuple[Adapter, dict[str, Any]]:
        with lmms_data.data(job, rows):
            task = lmms_data.task(job, rows)
            adapter = Adapter(job, answerer, task, rows)
            try:
                result = simple_evaluate(
                    model=adapter,
                    tasks=[task],
                    task_manager=lmms_data.task_manager(job.engine),
                    batch_size=1,
                    # Without a namespace the images are read again for scoring, and submission
                    # files land in the working directory.
                    cli_args=argparse.Namespace(
                        process_with_media=False, output_path=str(job.scratch)
                    ),
                    bootstrap_iters=0,
                    log_samples=True,
                    # None: otherwise every call reseeds python, numpy and torch.
                    random_seed=None,
                    numpy_random_seed=None,
                    torch_random_seed=None,
                    process_docs_parallel=1,
                    datetime_str="run",
                )
            except HarnessError:
                raise
            except (AssertionError, KeyError, ValueError, TypeError, ZeroDivisionError) as error:
                raise HarnessError(f"lmms-eval could not score: {one_line(error)}") from error
        return adapter, result


class Adapter(lmms):
    """Turns lmms-eval's requests into questions and the answers back."""

    is_simple = True

    def __init__(
        self, job: Job, answerer: Answerer, task: ConfigurableTask, rows: Sequence[int]
    ) -> None:
        super().__init__()
        self.accelerator = None  # the evaluator would make one otherwise; one process needs none
        self.entries: dict[int, dict[str, Any]] = {}
        self._job, self.task, self._rows = job, task, rows
        self._place = {row: place for place, row in enumerate(rows)}
        self._scores: list[float] = []
        self._done = 0
        self._asker = Asker(
            answerer, job.journal, job.answered, job.batch_size, self._progress, job.share
        )

    def generate_until(self, requests: list[Any]) -> list[GenerationResult]:
        """Answers in the order of the requests, exactly one each."""
        questions = [self._question(request) for request in requests]
        self.entries = self._asker.ask(questions)
        results = [_result(self.entries[question.doc_id]) for question in questions]
        # The evaluator would silently score missing answers as "".
        if len(results) != len(requests):
            raise HarnessError(f"{len(requests)} requests got {len(results)} answers")
        return results

    def clean(self) -> None:
        """Nothing: the inherited one deletes every module attribute after the first call."""

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        raise NotImplementedError("this engine supports generation tasks only")

    def generate_until_multi_round(self, requests: list[Any]) -> list[Any]:
        raise NotImplementedError("this engine supports single-round tasks only")

    def _question(self, request: Any) -> Question:
        context, options, doc_to_visual, doc_id, task, split = request.args
        until = options.get("until") or ()
        docs = self.task_dict[task][split]
        row = self._rows[doc_id]
        return Question(
            doc_id=row,
            sample_id=f"{task}:{row}",
            prompt=context,
            images=lambda: list(doc_to_visual(docs[doc_id]) or ()),
            until=(until,) if isinstance(until, str) else tuple(until),
            max_new_tokens=options.get("max_new_tokens"),
        )

    def _progress(self, entry: dict[str, Any]) -> None:
        self._done += 1
        if not entry["error"]:
            docs = self.task.eval_docs_no_media
            doc = docs[self._place[entry["doc_id"]]]
            metric = self._job.bench.metric
            with contextlib.suppress(Exception):  # only decoration; the real score comes later
                value = self.task.process_results(doc, [entry["answer"]]).get(metric)
                if isinstance(value, (int, float)):
                    self._scores.append(float(value) * self._job.bench.scale)
        mean = sum(self._scores) / len(self._scores) if self._scores else None
        self._job.on_progress(self._done, len(self._rows), mean)


class _Replay:
    """Answers nothing: every sample it could be asked about is in the journal."""

    def answer(self, batch: Sequence[Question]) -> list[Any]:
        raise HarnessError(f"sample {batch[0].doc_id} should have been in the journal")


def _result(entry: dict[str, Any]) -> GenerationResult:
    counts = TokenCounts(entry.get("prompt_tokens"), entry.get("generated_tokens"))
    return GenerationResult(entry["answer"] or "", counts)


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Silence lmms-eval's bars, one of which ignores TQDM_DISABLE, while it runs."""
    modules = (task_module, evaluator_module)
    real = [module.tqdm for module in modules]
    for module, bar in zip(modules, real, strict=True):
        module.tqdm = functools.partial(_silent, bar)
    try:
        yield
    finally:
        for module, bar in zip(modules, real, strict=True):
            module.tqdm = bar


def _silent(bar: Any, *args: Any, **kwargs: Any) -> Any:
    return bar(*args, **{**kwargs, "disable": True})
