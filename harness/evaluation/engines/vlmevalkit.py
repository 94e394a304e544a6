"""VLMEvalKit as an engine: its tables and prompts ask, its scorers judge, our answerer answers.

Its inference loop is not used: it takes one sample at a time, reuses the answers of whatever model
left files behind, and keeps nothing of a failed sample. The questions go through the same asker
and journal as those of the other engine, and its scorers get a prediction table of the answers.
Checked against ms-vlmeval 0.0.20.
"""

from __future__ import annotations

from typing import Any

from vtprune.harness.evaluation import quiet
from vtprune.harness.evaluation.engines import vlm_import, vlm_scores, vlm_table
from vtprune.harness.evaluation.engines.asking import Asker
from vtprune.harness.evaluation.engines.base import Answerer, Job, Outcome
from vtprune.harness.evaluation.engines.groups import scorable
from vtprune.harness.request.errors import HarnessError


class VLMEvalKit:
    """Engine ``vlmevalkit``."""

    def run(self, job: Job, answerer: Answerer) -> Outcome:
        """Answer and score one table; failed rows and their groups are left out of every metric."""
        if job.data.root is None:
            raise HarnessError("engine=vlmevalkit needs a folder with the table")
        quiet.no_progress_bars()
        table, style = job.engine.table, job.engine.wording or "generic"
        with vlm_import.surroundings(job.data.root):
            # Fresh for every job: scoring changes the object.
            dataset = vlm_table.open_dataset(table, job.data.root)
            group = vlm_table.groups(dataset.data, table)
            rows = vlm_table.rows(job, dataset.data, group)
            questions = [vlm_table.question(job, dataset, row, style) for row in rows]
            asker = Asker(
                answerer, job.journal, job.answered, job.batch_size, _Progress(job, len(rows)),
                job.share,
            )  # fmt: skip
            entries = asker.ask(questions)
            answered = scorable(rows, group, entries)
            if not answered:
                reason = next(e["error"] for e in entries.values() if e["error"])
                raise HarnessError(f"no sample was answered: {reason}")
            answers = {row: entries[row]["answer"] for row in answered}
            metrics, scores = vlm_scores.evaluate(dataset, table, answers, job.scratch / "vlmeval")
            samples = [_sample(job, dataset, entries[row], scores.get(row)) for row in rows]
        metrics |= _added(job.bench.name, metrics, scores)
        if job.bench.metric not in metrics:
            raise HarnessError(
                f"VLMEvalKit gave no '{job.bench.metric}' for {table} "
                f"(it gave: {', '.join(metrics)}; bench.metric=NAME chooses one)"
            )
        return Outcome(metrics, samples)


class _Progress:
    def __init__(self, job: Job, total: int) -> None:
        self._job, self._total, self._done = job, total, 0

    def __call__(self, entry: dict[str, Any]) -> None:
        self._done += 1
        self._job.on_progress(self._done, self._total, None)


def _sample(job: Job, dataset: Any, entry: dict[str, Any], score: float | None) -> dict[str, Any]:
    line = dataset.data.iloc[entry["doc_id"]]
    image = line.get("image_path")
    scale = 100 if job.bench.unit == "%" else 1
    return {
        **entry,
        "question_id": str(line["index"]),
        "image_id": None if vlm_table.missing(image) else image,
        "reference": vlm_table.reference(line),
        "score": None if score is None else score * scale,
    }


def _added(bench: str, metrics: dict[str, float], scores: dict[int, float]) -> dict[str, float]:
    """Numbers people quote that the library does not give, or gives for full data only."""
    if "Overall" not in metrics and "Overall/Overall" in metrics:  # a table by split and number
        return {"Overall": metrics["Overall/Overall"]}
    if bench == "mme":
        return {"total": metrics["perception"] + metrics["reasoning"]}
    if bench == "ocrbench":
        return {"ocrbench_points": 1000 * sum(scores.values()) / len(scores)}
    return {}
