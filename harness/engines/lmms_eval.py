"""lmms-eval as an engine: its tasks word the prompts and score, our answerer runs the model.

No fork and no lasting patch. What is worked around, and why, stands at each place; the facts were
checked against lmms-eval 0.7.3.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lmms_eval
import lmms_eval.api.task as task_module
import lmms_eval.evaluator as evaluator_module
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.api.task import ConfigurableTask
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

from harness import quiet
from harness.data.redirect import redirect
from harness.engines.asking import Asker
from harness.engines.base import Answerer, Job, Outcome, Question
from harness.errors import ConfigError, HarnessError, one_line

# No task has a prompt block under this name, so every task gives its default prompt.
PROMPT_MODEL = "llava_hf"


class LmmsEval:
    """Engine ``lmms_eval``."""

    def run(self, job: Job, answerer: Answerer) -> Outcome:
        """Answer and score one task; failed samples are left out of every metric."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise HarnessError("several processes per cell are not supported: unset WORLD_SIZE")
        quiet.loguru_to_stderr()
        quiet.no_progress_bars()
        with _no_bars():
            rows = _rows(job)
            entries, result = self._evaluate(job, answerer, rows)
            answered = [row for row in rows if not entries[row]["error"]]
            if not answered:
                raise HarnessError(f"no sample was answered: {entries[rows[0]]['error']}")
            if len(answered) < len(rows):
                # The evaluator needs one answer per request and would score a failed sample as an
                # empty answer. So it is asked again about the answered ones only; the answers come
                # from the journal, and its own aggregation sees nothing else.
                _, result = self._evaluate(job, _Replay(), answered)
        return _outcome(job, result, rows, answered, entries)

    def _evaluate(
        self, job: Job, answerer: Answerer, rows: Sequence[int]
    ) -> tuple[dict[int, dict[str, Any]], dict[str, Any]]:
        with _data(job, rows):
            task = _task(job.engine)
            adapter = Adapter(job, answerer, task, rows)
            try:
                result = simple_evaluate(
                    model=adapter,
                    tasks=[task],
                    task_manager=_task_manager(job.engine),
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
        return adapter.entries, result


class Adapter(lmms):
    """Turns lmms-eval's requests into questions and the answers back."""

    is_simple = True

    def __init__(
        self, job: Job, answerer: Answerer, task: ConfigurableTask, rows: Sequence[int]
    ) -> None:
        super().__init__()
        self.accelerator = None  # the evaluator would make one otherwise; one process needs none
        self.entries: dict[int, dict[str, Any]] = {}
        self._job, self._task, self._rows = job, task, rows
        self._scores: list[float] = []
        self._done = 0
        self._asker = Asker(answerer, job.journal, job.answered, job.batch_size, self._progress)

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
            docs = self._task.eval_docs_no_media
            doc = docs[self._rows.index(entry["doc_id"])]
            metric = self._job.bench["metric"]
            with contextlib.suppress(Exception):  # only decoration; the real score comes later
                value = self._task.process_results(doc, [entry["answer"]]).get(metric)
                if isinstance(value, (int, float)):
                    self._scores.append(float(value) * self._job.bench["scale"])
        mean = sum(self._scores) / len(self._scores) if self._scores else None
        self._job.on_progress(self._done, len(self._rows), mean)


class _Replay:
    """Answers nothing: every sample it could be asked about is in the journal."""

    def answer(self, batch: Sequence[Question]) -> list[Any]:
        raise HarnessError(f"sample {batch[0].doc_id} should have been in the journal")


def _result(entry: dict[str, Any]) -> GenerationResult:
    counts = TokenCounts(entry.get("prompt_tokens"), entry.get("generated_tokens"))
    return GenerationResult(entry["answer"] or "", counts)


def _tasks_folder(engine: dict[str, Any]) -> Path:
    return Path(lmms_eval.__file__).parent / "tasks" / engine["folder"]


def _task_manager(engine: dict[str, Any]) -> TaskManager:
    # One folder instead of the full index: 0.1 s instead of 3 s.
    return TaskManager(
        "ERROR",
        include_defaults=False,
        model_name=PROMPT_MODEL,
        include_path=[str(_tasks_folder(engine))],
    )


def _task(engine: dict[str, Any]) -> ConfigurableTask:
    config = _task_manager(engine)._get_config(engine["task"])
    return ConfigurableTask(config=config, model_name=PROMPT_MODEL)


def _data(job: Job, rows: Sequence[int] | None) -> contextlib.AbstractContextManager[None]:
    dataset, split = job.engine["dataset"], job.engine["split"]
    return redirect(
        job.data.root,
        subset=None if rows is None else (dataset, split, rows),
        revision=(dataset, job.data.revision) if job.data.revision else None,
        cache_dir=job.data.cache,
    )


def _rows(job: Job) -> list[int]:
    """Rows of the split that this cell asks about, by ``limit`` or ``indices``."""
    import datasets

    try:
        with _data(job, None):
            # Loaded once here, because lmms-eval retries a failing load five times.
            loaded = datasets.load_dataset(job.engine["dataset"], job.engine.get("config"))
    except (OSError, ValueError) as error:
        raise HarnessError(f"data set {job.engine['dataset']}: {one_line(error)}") from error
    n = len(loaded[job.engine["split"]])
    indices, limit = job.bench.get("indices"), job.bench.get("limit")
    if indices is None:
        return list(range(n if limit is None else min(n, limit)))
    if outside := [i for i in indices if i >= n]:
        raise ConfigError(f"bench.indices: {outside[0]} is outside the {n} samples of this data")
    return list(indices)


def _outcome(
    job: Job,
    result: dict[str, Any],
    rows: Sequence[int],
    answered: Sequence[int],
    entries: dict[int, dict[str, Any]],
) -> Outcome:
    task = job.engine["task"]
    metrics = {
        key.removesuffix(",none"): float(value)
        for key, value in result["results"][task].items()
        if key.endswith(",none") and "stderr" not in key and isinstance(value, (int, float))
    }
    if job.bench["metric"] not in metrics:
        raise HarnessError(
            f"lmms-eval gave no '{job.bench['metric']}' for {task} (it gave: {', '.join(metrics)})"
        )
    scored = {answered[sample["doc_id"]]: sample for sample in result["samples"][task]}
    samples = []
    for row in rows:
        sample = scored.get(row)
        samples.append({**entries[row], **_about(job, sample)})
    return Outcome(metrics, samples)


def _about(job: Job, sample: dict[str, Any] | None) -> dict[str, Any]:
    if sample is None:
        return {"score": None}
    doc = sample["doc"]
    reference = doc.get(job.bench["reference"]) if job.bench.get("reference") else sample["target"]
    return {
        "question_id": doc.get("question_id"),
        "image_id": doc.get("image_id", doc.get("imageId")),
        "reference": reference,
        "score": _score(sample.get(job.bench["metric"]), job.bench["scale"]),
    }


def _score(value: Any, scale: float) -> float | None:
    """A sample's own score: a number, or the ``score`` entry of what the task aggregates."""
    if isinstance(value, dict):
        value = value.get("score")
    return float(value) * scale if isinstance(value, (int, float)) else None


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
