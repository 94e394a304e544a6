"""What comes out of lmms-eval: metrics, our few additions to them, and a score for each sample."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vtprune.harness.evaluation.engines.base import Job, Outcome
from vtprune.harness.evaluation.engines.lmms_packages import ConfigurableTask
from vtprune.harness.request.errors import HarnessError


@dataclass(frozen=True)
class Scored:
    """A finished evaluation: ``result`` is the evaluator's, over the ``answered`` rows only."""

    job: Job
    task: ConfigurableTask
    result: dict[str, Any]
    answered: Sequence[int]

    @property
    def samples(self) -> dict[int, dict[str, Any]]:
        """The evaluator's samples by row of the full split."""
        found = self.result["samples"][self.job.engine.task]
        return {self.answered[sample["doc_id"]]: sample for sample in found}


def outcome(
    scored: Scored,
    rows: Sequence[int],
    entries: dict[int, dict[str, Any]],
    asked: Sequence[dict[str, Any]],
) -> Outcome:
    """All metrics, and every asked sample with its reference; a failed one has no score.

    ``asked`` are the evaluator's samples of all ``rows``, for what is known of a failed one.
    """
    job = scored.job
    found = scored.result["results"][job.engine.task]
    metrics = _metrics(found)
    score_of, by_row = sample_scorer(job, scored.task), scored.samples
    about = {rows[sample["doc_id"]]: _about(job, rows[sample["doc_id"]], sample)
             for sample in asked}  # fmt: skip
    samples = [
        {**entries[row], **about[row], "score": score_of(by_row[row]) if row in by_row else None}
        for row in rows
    ]
    metrics |= added(job.bench.name, metrics, [s for s in samples if s["doc_id"] in by_row])
    if job.bench.metric not in metrics:
        raise HarnessError(
            f"lmms-eval gave no '{job.bench.metric}' for {job.engine.task} "
            f"(it gave: {', '.join(metrics)})"
        )
    return Outcome(metrics, samples)


def _metrics(found: dict[str, Any]) -> dict[str, float]:
    """Metric -> value. Behind the comma stands how answers were filtered first; plain ones win."""
    made: dict[str, float] = {}
    for key, value in found.items():
        name, comma, kind = key.rpartition(",")
        number = comma and "stderr" not in key and isinstance(value, (int, float))
        if number and (kind == "none" or name not in made):
            made[name] = float(value)
    return made


def _about(job: Job, row: int, sample: dict[str, Any]) -> dict[str, Any]:
    doc, engine, reference = sample["doc"], job.engine, job.bench.reference
    return {
        "question_id": doc.get(engine.question_id, row),
        "image_id": doc.get(engine.image_id),
        "reference": doc[reference] if reference else sample["target"],
    }


def sample_scorer(job: Job, task: ConfigurableTask) -> Callable[[dict[str, Any]], float | None]:
    """A function that reads a sample's own score, in the unit of the benchmark's score.

    Metrics hold a number, a dict with a ``score``, or something only the aggregation understands;
    the last is aggregated alone, so that the task's own rule decides.
    """
    scale = job.bench.scale
    named = job.engine.score_of or job.bench.metric
    alone = _aggregation(task, named, str(job.scratch))

    def score(sample: dict[str, Any]) -> float | None:
        value = sample.get(named)
        if value is None:  # a row that another metric of the task counts, e.g. MME's cognition
            value = next((v for k, v in sample.items() if _is_sibling(k, named)), None)
        if isinstance(value, dict):
            if "score" in value:
                return float(value["score"]) * (100 if job.bench.unit == "%" else 1)
            if alone is None:
                return None
            with contextlib.redirect_stdout(io.StringIO()):
                value = alone([value])
        return float(value) * scale if isinstance(value, (int, float)) else None

    return score


def _is_sibling(key: str, named: str) -> bool:
    return key.startswith(f"{named.partition('_')[0]}_") and key.endswith(named.rpartition("_")[2])


def _aggregation(
    task: ConfigurableTask, metric: str, folder: str
) -> Callable[[list[Any]], float] | None:
    function = task.aggregation().get(metric)
    if function is None:
        return None
    named = getattr(function, "__globals__", {}).get("mmbench_evaluator")
    if evaluator := getattr(function, "evaluator", named):
        return lambda values: _mmbench(evaluator, values[0])
    if "args" not in inspect.signature(function).parameters:
        return function
    return lambda values: function(values, args=argparse.Namespace(output_path=folder))


def _mmbench(evaluator: Any, value: dict[str, Any]) -> float:
    """What MMBench's static rule says of one answer; its aggregation takes 13 ms to say it."""
    import pandas as pd

    row = {key if key in "ABCD" else key.lower(): entry for key, entry in value.items()}
    frame, truth = pd.DataFrame([row]), {value["index"]: value["answer"]}
    return 100.0 * evaluator.eval_sub_data(frame, truth, static_only=True)


def added(
    bench: str, metrics: dict[str, float], samples: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """Numbers people quote that the task does not give, or gives for full data only."""
    if bench == "mme":
        parts = ("mme_perception_score", "mme_cognition_score")
        return {"mme_total_score": sum(metrics.get(part, 0.0) for part in parts)}
    if bench == "pope":
        said = [s["answer"].lower().strip() for s in samples]
        return {"yes_ratio": said.count("yes") / len(said)}
    if bench == "ocrbench":
        return {"ocrbench_points": 1000 * sum(s["score"] for s in samples) / len(samples)}
    return {}
