"""``task=score``: the stored answers of a finished cell scored again, without the model.

An engine's correction of its scorer must not cost a GPU day. The answers stay those that the model
gave; what is new is the engine's version, so the new result is a cell of its own key beside the old
one. Under the version the answers were scored with before, the old result is set aside.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtprune.harness.cell import prepare
from vtprune.harness.cell.progress import say
from vtprune.harness.evaluation.engines.base import Answer, Job, Outcome, Question
from vtprune.harness.request import identity as cells
from vtprune.harness.request.errors import ConfigError, HarnessError
from vtprune.harness.request.request import Request
from vtprune.harness.store import index, lease
from vtprune.harness.store.cell import Store
from vtprune.harness.store.schema import Result, Sample


def run_score(asked: Request, *, sweep: bool = False) -> dict[str, Any]:
    """Score a finished cell of this request under the installed engine; its new result.

    Neither the checkpoint nor the model is looked for.

    Args:
        sweep: part of a multirun, in which ``method=none`` meets ratios meant for the others.

    Raises:
        ConfigError: the request is wrong, or the engine is not installed.
        HarnessError: no finished cell answers it, or the engine asks other questions now.
    """
    check(asked)
    request, data, notes = prepare.without_checkpoint(asked, sweep=sweep)
    for note in notes:
        say(note)
    old = _newest(request)
    identity = {**old["identity"], "versions": _versions(request.engine, old)}
    labels = {k: old[k] for k in ("model", "method", "bench", "data", "engine")}
    cell = cells.Cell(identity, {**labels, "ratio": f"{old['ratio']:g}"})
    store, samples = Store(request.results, cell), index.samples(Path(old["directory"]))
    held = lease.acquire(store.folder, request.sweep.lease_s)
    store.guard = held.check
    try:
        return _scored(request, data, store, old, samples)
    finally:
        held.release(store.result_file.exists())


def _newest(request: Request) -> Result:
    """The finished cell to score: of this request and model, the one with the newest answers."""
    wanted = cells.asked(request.config)
    found = [
        result
        for result in index.finished(request.results, request.bench.name, request.model.name)
        if result["engine"] == request.engine
        and result["data"] == request.data.source
        and _of_request(result["identity"], wanted)
    ]
    if not found:
        raise HarnessError(
            f"no finished cell of this request below {request.results}/runs/{request.bench.name}/"
            f"{request.model.name} to score again; run it first (task=cell)"
        )
    return max(found, key=lambda result: (_answered_at(result), result["finished"]))


def _of_request(identity: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    apart = ("format", "model", "data", "versions")
    own = {k: v for k, v in identity.items() if k not in apart}
    return cells.canonical_json(own) == cells.canonical_json(wanted)


def _answered_at(result: Mapping[str, Any]) -> str:
    return str((result.get("scoring") or {}).get("answered", result["finished"]))


def _versions(engine: str, old: Mapping[str, Any]) -> dict[str, str]:
    """Versions the answers were given with, and the installed one of the engine."""
    before, now = old["identity"]["versions"], cells.versions(engine)
    name = cells.engine_package(now)
    return {**{k: v for k, v in before.items() if k != cells.engine_package(before)},
            name: now[name]}  # fmt: skip


@dataclass(frozen=True)
class _Answered:
    """Every question is in the journal already; one that is not means that the engine changed."""

    version: str

    def answer(self, batch: Sequence[Question]) -> list[Answer]:
        raise HarnessError(
            f"sample {batch[0].doc_id} was never asked: the engine ({self.version}) selects other "
            "rows now, so the cell has to be run again"
        )


class _Nowhere:
    def append(self, entry: dict[str, Any]) -> None:
        """Nothing new is answered."""


def _scored(
    request: Request, data: Any, store: Store, old: Result, samples: Sequence[Sample]
) -> dict[str, Any]:
    from vtprune.harness.evaluation import engines, quiet

    name = cells.engine_package(store.cell.identity["versions"])
    now, before = store.cell.identity["versions"][name], _scorer_of(old)
    say(f"scoring {len(samples)} answers of {old['finished'][:16]} with {name} {now} "
        f"(before: {before})")  # fmt: skip
    job = Job(
        bench=request.bench, engine=request.entry, data=data, batch_size=request.batch_size,
        journal=_Nowhere(), answered={entry["doc_id"]: entry for entry in samples},
        scratch=store.folder / "engine",
    )  # fmt: skip
    store.folder.mkdir(parents=True, exist_ok=True)
    with quiet.libraries_to(store.log_file):
        outcome = _explained(lambda: engines.get(request.engine).run(job, _Answered(now)), name)
    if store.result_file.exists():
        say(f"the result that was here is set aside in {store.reopen().name}")
    if not (store.folder / index.CELL).exists():
        store.open(index.config(Path(old["directory"])))
    result = _result(request, store, old, outcome) | {
        "scoring": {
            "answers_of": old["key"],
            "answered": _answered_at(old),
            "before": {"scorer": before, "score": old["score"]},
            "now": {"scorer": f"{name} {now}", "score": outcome.metrics[request.bench.metric]
                    * request.bench.scale},
        }
    }  # fmt: skip
    store.finish(outcome.samples, result)
    told = result["scoring"]
    say(f"{request.bench.metric}: {told['before']['score']:.2f} with {before}, "
        f"{told['now']['score']:.2f} with {told['now']['scorer']}")  # fmt: skip
    return {**result, "directory": str(store.folder)}


def _scorer_of(result: Mapping[str, Any]) -> str:
    versions = result["identity"]["versions"]
    name = cells.engine_package(versions)
    return f"{name} {versions[name]}"


def _explained(run: Callable[[], Outcome], engine: str) -> Outcome:
    try:
        return run()
    except HarnessError as error:
        if "stored prompt is not the one asked now" in str(error):
            raise HarnessError(
                f"{engine} words its questions otherwise now, so the stored answers are not to its "
                "questions; run the cell again"
            ) from error
        raise


def _result(request: Request, store: Store, old: Result, outcome: Outcome) -> dict[str, Any]:
    bench = request.bench
    failed = [sample for sample in outcome.samples if sample["error"]]
    kept = {k: v for k, v in old.items() if k not in ("directory", "schema", "scoring")}
    return {
        **kept,
        "key": store.cell.key,
        "identity": store.cell.identity,
        "score": outcome.metrics[bench.metric] * bench.scale,
        "metric": bench.metric,
        "unit": bench.unit,
        "higher_is_better": bench.higher_is_better,
        "metrics": outcome.metrics,
        "scales": bench.scales,
        "judge": bench.judge,
        "n_samples": len(outcome.samples),
        "n_failed": len(failed),
        "failures": [{"doc_id": s["doc_id"], "error": s["error"]} for s in failed[:20]],
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def check(request: Request) -> None:
    """Refuse what makes no sense for stored answers.

    Raises:
        ConfigError: ``force`` asks for answers.
    """
    if request.force:
        raise ConfigError("task=score asks no model, so force has nothing to ask again")
