"""A store made up for a table: cells with journals, without a model."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vtprune.harness.reporting.tables import lookup, spec
from vtprune.harness.request.identity import canonical_json

VERSIONS = {"torch": "2.12.1", "transformers": "5.23.0", "lmms_eval": "0.7.3"}
Scores = Callable[[spec.Wanted], np.ndarray]


def identity(cell: spec.Wanted) -> dict[str, Any]:
    """What the store would hold as the identity of this cell."""
    model = cell.config["model"]
    return {
        **copy.deepcopy(dict(cell.asked)),
        "format": 1,
        "model": {
            "checkpoint": lookup.fingerprint(model) or "x",
            "device": "cpu",
            "dtype": "float32",
        },
        "data": {"source": cell.config["data"]["source"], "seed": 0, "rows": 40, "content": "c"},
        "versions": dict(VERSIONS),
    }


def result(cell: spec.Wanted, scores: np.ndarray, **changes: Any) -> dict[str, Any]:
    """A result.json as a run writes it."""
    import hashlib

    made = identity(cell)
    bench = cell.config["bench"]
    removal = cell.row.ratio
    return {
        "key": hashlib.sha256(canonical_json(made).encode()).hexdigest(),
        "model": cell.config["model"]["name"],
        "method": cell.row.method,
        "ratio": cell.row.ratio,
        "bench": cell.bench,
        "data": made["data"]["source"],
        "engine": "lmms_eval",
        "score": float(scores.mean()),
        "metric": bench["metric"],
        "unit": bench["unit"],
        "metrics": {},
        "scales": {},
        "judge": None,
        "n_samples": len(scores),
        "n_failed": 0,
        "finished": "2026-01-01T00:00:00",
        "resumed_after": 0,
        "wall_s": 4.0,
        "counters": {
            "removal": removal,
            "visual_tokens": 196,
            "visual_kept": 196 * (1 - removal),
            "macs": {"total": 100 * (1 - removal)},
            "macs_full": 100,
            "accuracy_pass": {"samples_per_s": 10 / (1 - removal / 2)},
        },
        "identity": made,
        "provenance": {"code": "abc", "commit": "def", "modified": False,
                       "hardware": {"device": "cpu"}},
        **changes,
    }  # fmt: skip


def journal(scores: np.ndarray, each: int = 1) -> str:
    """Lines of samples; ``each`` questions about one image."""
    lines = []
    for doc, score in enumerate(scores):
        entry = {
            "doc_id": doc,
            "prompt": f"question {doc}",
            "reference": f"a{doc}",
            "answer": f"a{doc}" if score else f"wrong{doc}",
            "error": None,
            "score": float(score),
            "image_id": f"i{doc // each}",
            "question_id": doc,
            "visual_tokens": 196,
            "pruning": {"prompt_length": 222, "visual_tokens": 196, "crops": 1,
                        "visual_per_layer": [100] * 6, "grids": [[1, 14, 14]]},
        }  # fmt: skip
        lines.append(json.dumps(entry))
    return "\n".join(lines) + "\n"


def put(results: Path, cell: spec.Wanted, scores: np.ndarray, **changes: Any) -> Path:
    """Write one finished cell; returns its folder."""
    made = result(cell, scores, **changes)
    name = f"{cell.row.method}-{cell.row.ratio:g}-{made['key'][:8]}"
    folder = results / "runs" / cell.bench / made["model"] / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "samples.jsonl").write_text(journal(scores), encoding="utf-8")
    (folder / "result.json").write_text(json.dumps(made), encoding="utf-8")
    return folder


def right_wrong(share: float, n: int = 200, seed: int = 0) -> np.ndarray:
    """Scores of 0 and 100; the questions that are hard are hard for every row."""
    rng = np.random.default_rng(0)
    luck = np.random.default_rng(100 + seed)
    hard = rng.random(n)
    return 100.0 * (hard + 0.05 * luck.normal(size=n) < share)


SHARES = {
    "none": 0.8, "random": 0.3, "l2norm": 0.6, "graph_only": 0.62, "gprune": 0.7, "tome": 0.5,
    "fastv": 0.5,
}  # fmt: skip


def by_method(cell: spec.Wanted) -> np.ndarray:
    """Scores that depend on the method and a little on the seed."""
    return right_wrong(SHARES[cell.row.method], seed=cell.config["seed"])


def fill(results: Path, table: spec.Table, scores: Scores = by_method) -> None:
    """Write every cell of a table."""
    for cell in table.cells():
        put(results, cell, scores(cell))
