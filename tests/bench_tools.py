"""Every benchmark on a few mini rows, answered by an oracle or by a constant, without a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.engine_tools import ROOT, Scripted
from vtprune.harness.evaluation.data import mini, source
from vtprune.harness.evaluation.engines.base import Job, Outcome
from vtprune.harness.request.benches import seen_by_engine
from vtprune.harness.request.known import entries
from vtprune.harness.request.request import Request
from vtprune.harness.store.journal import Journal, read_journal

CONF = ROOT / "conf"
#: with rows of their own; `named` stands for any task of an engine
BENCHES = sorted(file.stem for file in (CONF / "bench").glob("*.yaml") if file.stem != "named")
LETTERS = "ABCDE"

# What the right answer to a row is, in the form the benchmark's scorer wants.
RIGHT: dict[str, Callable[[dict[str, Any]], str]] = {
    "textvqa": lambda row: row["answers"][0],
    "gqa": lambda row: row["answer"],
    "vqav2": lambda row: row["multiple_choice_answer"],
    "mme": lambda row: row["answer"],
    "pope": lambda row: row["answer"],
    "mmbench_en": lambda row: row["answer"],
    "mmbench_cn": lambda row: row["answer"],
    "chartqa": lambda row: row["answer"],
    "docvqa": lambda row: row["answers"][0],
    "scienceqa": lambda row: LETTERS[row["answer"]],
    "vizwiz": lambda row: row["answers"][0],
    "seedbench": lambda row: row["answer"],
    "mmvet": lambda row: row["answer"].replace("<AND>", " and ").split("<OR>")[0],
    "ocrbench": lambda row: row["answer"][0],
    "ai2d": lambda row: LETTERS[int(row["answer"])],
    "mmstar": lambda row: row["answer"],
    "realworldqa": lambda row: row["answer"],
    "infovqa": lambda row: row["answers"][0],
    "hallusion_bench": lambda row: "Yes" if row["gt_answer"] == "1" else "No",
    "mmmu": lambda row: row["answer"],
    "refcoco": lambda row: _box(row),
    "refcoco_plus": lambda row: _box(row),
    "refcocog": lambda row: _box(row),
}


def _box(row: dict[str, Any]) -> str:
    """The corners as shares of the picture, as the task wants them."""
    x, y, width, height = row["bbox"]
    sides = [x, y, x + width, y + height]
    return str([round(side / 112, 4) for side in sides])


def config(name: str, **changes: Any) -> dict[str, Any]:
    """conf/bench/<name>.yaml with changes."""
    return {**(entries("bench", name) or {}), **changes}


def rows(name: str, samples: int) -> list[dict[str, Any]]:
    """The mini rows of a benchmark as the engine's split holds them."""
    bench = config(name)
    wanted = bench["engines"]["lmms_eval"]["config"] or "data"
    tables = mini.tables(bench["mini"], 0, samples)
    found = next(table.rows for table in tables if table.config == wanted)
    if bench["engines"]["lmms_eval"].get("processed"):  # a question for each phrase
        return [row for row in found for _ in row["answer"]]
    return found


def job(
    folder: Path, name: str, journal: Journal, *, engine: str = "lmms_eval", samples: int = 8,
    batch_size: int = 4, model: dict[str, Any] | None = None, **bench_changes: Any,
) -> Job:  # fmt: skip
    """A job on mini rows; continues what the journal in ``folder`` holds."""
    options = entries("engine", engine) or {}
    request = seen_by_engine(Request({
        "bench": config(name, **bench_changes), "engine": options, "model": model,
        "data": {"source": "mini", "seed": 0, "samples": samples},
    }))  # fmt: skip
    earlier = read_journal(folder / "samples.jsonl")
    return Job(
        bench=request.bench,
        engine=request.entry,
        data=source.prepare(request.data, request.bench, request.entry, folder / "cache"),
        batch_size=batch_size,
        journal=journal,
        answered={e["doc_id"]: e for e in earlier if not e["error"]},
        scratch=folder / "engine",
    )


def oracle(name: str, samples: int = 8) -> Scripted:
    right, known = RIGHT[config(name)["mini"]], rows(name, samples)
    return Scripted(lambda question: right(known[question.doc_id]))


def constant(answer: str = "xyzzy") -> Scripted:
    return Scripted(lambda question: answer)


def run(
    folder: Path, name: str, answerer: Scripted, engine: str = "lmms_eval", **options: Any
) -> Outcome:
    """One benchmark through one engine; the journal stays in ``folder``."""
    from vtprune.harness.evaluation import engines

    folder.mkdir(parents=True, exist_ok=True)
    with Journal(folder / "samples.jsonl") as journal:
        task = job(folder, name, journal, engine=engine, **options)
        return engines.get(engine).run(task, answerer)
