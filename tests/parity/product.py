"""The same rows through cells of the product, ``method=none``, logged at the same boundary."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.parity.recorder import Recorder
from vtprune.harness import cli
from vtprune.harness.cell.answerer import ModelAnswerer
from vtprune.harness.evaluation.data import source
from vtprune.harness.evaluation.engines.base import Question
from vtprune.harness.request.benches import seen_by_engine
from vtprune.harness.request.compose import compose
from vtprune.harness.request.request import Request


def mini_root(results: Path, bench: str, engine: str, samples: int) -> Path:
    """Folder of the mini data that a cell below ``results`` reads, made now."""
    config = compose({"bench": bench, "engine": engine, "data.samples": samples})
    request = seen_by_engine(Request(config))
    cache = (results / ".cache").resolve()
    root = source.prepare(request.data, request.bench, request.entry, cache).root
    assert root is not None
    return root


def run(name: str, out: Path, overrides: Sequence[str]) -> None:
    """One cell; leaves ``<out>/<name>/rows.json`` as the stock processes do."""
    recorder, real = Recorder(), ModelAnswerer.answer
    results = out / name / "results"

    def answer(self: ModelAnswerer, batch: Sequence[Question]) -> Any:
        recorder.asking = [question.doc_id for question in batch]
        return real(self, batch)

    ModelAnswerer.answer = answer
    told = io.StringIO()
    try:
        with recorder.listening(), contextlib.redirect_stdout(told):
            with contextlib.redirect_stderr(told):
                status = cli.main([
                    "method=none", "batch_size=4", f"paths.results={results}", "progress=false",
                    *overrides,
                ])  # fmt: skip
    finally:
        ModelAnswerer.answer = real
    assert status == 0, told.getvalue()
    (file,) = results.glob("runs/*/*/*/result.json")
    result = json.loads(file.read_text(encoding="utf-8"))
    lines = (file.parent / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    assert not result["n_failed"], [s["error"] for s in samples if s["error"]]
    answers = {sample["doc_id"]: sample["answer"] for sample in samples}
    recorder.save(out / name, answers=answers, metrics=result["metrics"])
