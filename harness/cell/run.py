"""Run one cell: skip it if it is finished, continue it if it was killed, store what came out."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vtprune.harness.cell import meter, ranks
from vtprune.harness.cell.prepare import Prepared
from vtprune.harness.cell.progress import Progress, say
from vtprune.harness.evaluation.engines.base import ShareAnswered
from vtprune.harness.request import benches
from vtprune.harness.request.check import RETRY
from vtprune.harness.request.errors import HarnessError
from vtprune.harness.request.method import build_method, check_schedule
from vtprune.harness.store import lease, provenance, reuse
from vtprune.harness.store.cell import Store, stands
from vtprune.harness.store.journal import Journal
from vtprune.harness.store.schema import Sample


def run_cell(prepared: Prepared) -> dict[str, Any] | None:
    """The stored result of the cell, computed now unless it is there already.

    In a group of processes (``torchrun``) rank 0 returns it and the others return None.

    Raises:
        ConfigError: the method refuses its options.
        HarnessError: the cell could not be finished; what was answered stays in the journal.
    """
    for note in (*prepared.notes, prepared.data.note):
        if note:
            say(note)
    store = Store(prepared.request.results, prepared.cell)
    if (group := ranks.join()) is not None:
        with group.cell():
            return _run_together(group, prepared, store)
    if (stored := _finished(prepared, store)) is not None:
        _say_finished(stored, prepared.request.config["method"])
        return stored
    method = _checked_method(prepared)
    with _leased(prepared, store):
        stored = _finished(prepared, store)  # by somebody else, before the lease was ours
        if stored is not None:
            return stored
        _open(prepared, store)
        return _compute(prepared, store, method)


def _finished(prepared: Prepared, store: Store) -> dict[str, Any] | None:
    """The stored result, unless ``force`` asks for another one."""
    stored = store.result()
    if stored is None or not stands(stored, prepared.request):
        return None
    return {**stored, "directory": str(store.folder)}


@contextlib.contextmanager
def _leased(prepared: Prepared, store: Store) -> Iterator[lease.Lease]:
    """The cell for this process alone; raises :class:`lease.Busy` if another one has it."""
    held = lease.acquire(store.folder, prepared.request.sweep.lease_s)
    store.guard = held.check
    try:
        yield held
    finally:
        held.release(store.result_file.exists())


def _open(prepared: Prepared, store: Store) -> None:
    force, config = prepared.request.force, prepared.request.config
    if force is not True and (aside := store.set_aside_foreign(config)) is not None:
        say(f"what other code had answered is set aside in {aside.name}; nothing of it is used")
    if store.result_file.exists() and force is not True:
        aside = store.reopen()
        if force != RETRY:  # what cannot be read is no result
            say(f"{store.result_file.name} is set aside in {aside.name}; its answers are kept")
    store.open(config, fresh=force is True)
    ranks.fold(store.folder, store.journal_file)  # what a killed group of processes left behind
    if force is not True and (taken := reuse.into(store, config["method"])):
        say(f"{taken} answers of other runs on other rows of this benchmark are at hand")


def _run_together(
    group: ranks.Ranks, prepared: Prepared, store: Store
) -> dict[str, Any] | None:  # fmt: skip
    """The cell in a group: rank 0 looks whether it is finished and takes the lease for all."""
    if not group.first:
        verdict, _, number = group.agree().partition(" ")
        if verdict == "finished":
            return None
        if verdict == "busy":
            raise lease.Busy(f"{store.folder}: computed right now by another process")
        store.guard = functools.partial(lease.check, store.folder, int(number))
        return _compute_together(group, prepared, store, _checked_method(prepared))
    if (stored := _finished(prepared, store)) is not None:
        group.agree("finished")
        _say_finished(stored, prepared.request.config["method"])
        return stored
    method = _checked_method(prepared)
    try:
        with _leased(prepared, store) as held:
            if (stored := _finished(prepared, store)) is not None:
                group.agree("finished")
                return stored
            group.agree(f"go {held.number}")
            return _compute_together(group, prepared, store, method)
    except lease.Busy:
        group.agree("busy")
        raise


def _compute_together(
    group: ranks.Ranks, prepared: Prepared, store: Store, method: Any
) -> dict[str, Any] | None:
    """Every rank answers its share; rank 0 then scores what all of them answered."""
    from vtprune.harness.evaluation import quiet

    if group.first:
        _open(prepared, store)
    group.wait()
    earlier = [entry for entry in store.samples() if not entry["error"]]
    title = f"{prepared.cell.labels['method']} {prepared.cell.labels['ratio']}"
    log = store.log_file if group.first else store.folder / f"log.rank{group.rank}.txt"
    with Progress(prepared.request.progress, title) as progress:
        with quiet.libraries_to(log), ranks.alone(), contextlib.suppress(ShareAnswered):
            _answer(prepared, store, method, progress, earlier, group)
    group.wait()
    if not group.first:
        return None
    ranks.fold(store.folder, store.journal_file)
    with ranks.alone():
        return _compute(prepared, store, method, len(earlier), group.world)


def _checked_method(prepared: Prepared) -> Any:
    method = build_method(prepared.request)
    check_schedule(method, prepared.checkpoint.config)
    return method


def _say_finished(stored: Mapping[str, Any], method: Mapping[str, Any]) -> None:
    failed, again = "", "force=true runs it again"
    if stored["n_failed"]:
        failed = f", {stored['n_failed']} samples failed"
        again = "force=failed asks those again, force=true all of it"
    say(f"finished on {stored['finished'][:16]}{failed}; {again}")
    if provenance.is_stale(stored["provenance"], method):
        say("note: the code of its method, or of models/, changed since; force=stale runs it again")


def _compute(
    prepared: Prepared, store: Store, method: Any, resumed: int | None = None, processes: int = 1
) -> dict[str, Any]:
    from vtprune.harness.evaluation import quiet

    started, clock = time.strftime("%Y-%m-%dT%H:%M:%S%z"), time.perf_counter()
    earlier = [entry for entry in store.samples() if not entry["error"]]
    own = sum("reused" not in entry for entry in earlier)
    if own and resumed is None:
        say(f"continuing after {own} answered samples of an interrupted run")
    title = f"{prepared.cell.labels['method']} {prepared.cell.labels['ratio']}"
    with Progress(prepared.request.progress, title) as progress:
        with quiet.libraries_to(store.log_file):
            outcome = _answer(prepared, store, method, progress, earlier)
    own = "local" if getattr(method, "nominal", None) is not None else method.ratio_mode
    meter.check_removal(outcome.samples, prepared.request.ratio, own, len(method.chain))
    result = _result(prepared, outcome)
    result |= {
        "reused": sum("reused" in sample for sample in outcome.samples),
        "shared_vision": _shared_calls(),
        "resumed_after": len(earlier) if resumed is None else resumed,
        "processes": processes,
        "started": started,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "wall_s": round(time.perf_counter() - clock, 3),
        "command": " ".join(sys.argv[1:]),
        "directory": str(store.folder),
    }
    store.finish(outcome.samples, result)
    return result


def _shared_calls() -> int:
    """Calls of the image encoder that were remembered from another cell."""
    from vtprune.harness.cell import sharing

    memory = sharing.current()
    return memory.hits if memory else 0


def _answer(
    prepared: Prepared,
    store: Store,
    method: Any,
    progress: Progress,
    earlier: Sequence[Sample],
    group: ranks.Ranks | None = None,
) -> Any:
    from vtprune.harness.cell import sharing
    from vtprune.harness.cell.answerer import ModelAnswerer
    from vtprune.harness.evaluation import engines
    from vtprune.harness.evaluation.engines.base import Job
    from vtprune.models import prune
    from vtprune.models.errors import ModelLoadError

    request, device = prepared.request, prepared.runtime.device
    journal_file, share = store.journal_file, None
    if group is not None:
        device = group.device(device)
        journal_file, share = group.journal(store.folder), (group.rank, group.world)
    try:
        vlm = prepared.load(device)
        tower = _text_tower(prepared, device)
    except ModelLoadError as error:
        raise HarnessError(str(error)) from error
    for note in vlm.notes:
        progress.say(note)
    meter.reset_peak_memory(vlm.device)
    engine = engines.get(request.engine)
    pruning = prune(vlm.model, method, text_tower=tower)
    with Journal(journal_file, store.guard) as journal, pruning as run:
        job = Job(
            bench=request.bench,
            engine=request.entry,
            data=prepared.data,
            batch_size=request.batch_size,
            journal=journal,
            answered={entry["doc_id"]: entry for entry in earlier},
            scratch=store.folder / "engine",
            on_progress=progress.update,
            share=share,
        )
        run.shared = sharing.enter(prepared.cell)
        tell = store.describe if group is None or group.first else None
        answerer = ModelAnswerer(
            vlm, run, prepared.settings, tell, request.data.truncated_images
        )
        return engine.run(job, answerer)


def _text_tower(prepared: Prepared, device: str) -> Any:
    """The text half of the encoder's CLIP checkpoint, if the method reads the question with it."""
    if prepared.clip is None:
        return None
    from vtprune.models import text_tower

    return text_tower.load(prepared.clip.path, device)


def _result(prepared: Prepared, outcome: Any) -> dict[str, Any]:
    bench, cell, method = prepared.request.bench, prepared.cell, prepared.request.config["method"]
    failed = [s for s in outcome.samples if s["error"]]
    return {
        "key": cell.key,
        **cell.labels,
        "ratio": prepared.request.ratio,
        "score": outcome.metrics[bench.metric] * bench.scale,
        "metric": bench.metric,
        "unit": bench.unit,
        "higher_is_better": bench.higher_is_better,
        "metrics": outcome.metrics,
        "scales": bench.scales,
        "judge": bench.judge,
        "preset": prepared.settings.preset,
        "checkpoint_id": benches.checkpoint_id(prepared.request.model, cell.identity),
        "n_samples": len(outcome.samples),
        "n_failed": len(failed),
        "failures": [{"doc_id": s["doc_id"], "error": s["error"]} for s in failed[:20]],
        "counters": meter.summary(outcome.samples),
        "peak_memory": meter.peak_memory(prepared.runtime.device),
        "identity": cell.identity,
        "provenance": provenance.collect(prepared.runtime.device, method),
    }
