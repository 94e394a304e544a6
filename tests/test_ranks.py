"""Two processes on one cell give what one process gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import ranks
from harness.store import Journal, read_journal

ROOT = Path(__file__).resolve().parent.parent
CELL = ["method=random", "ratio=0.5", "bench.limit=11", "batch_size=2", "model.threads=1"]


def run(results: Path, *, processes: int = 1) -> subprocess.CompletedProcess:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        launcher += ["--master-port", "29541"]
    command = [*launcher, "run.py", *CELL, f"paths.results={results}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=400, env=environment
    )


def stored(results: Path) -> tuple[dict, list[dict]]:
    result = json.loads(next(results.glob("runs/**/result.json")).read_text())
    return result, read_journal(next(results.glob("runs/**/samples.jsonl")))


@pytest.mark.slow
def test_two_processes_give_the_metrics_and_records_of_one(tmp_path):
    single = run(tmp_path / "one")
    assert single.returncode == 0, single.stderr
    double = run(tmp_path / "two", processes=2)
    assert double.returncode == 0, double.stderr
    (one, alone), (two, together) = stored(tmp_path / "one"), stored(tmp_path / "two")
    assert two["processes"] == 2 and one["processes"] == 1
    assert one["key"] == two["key"]
    assert one["metrics"] == two["metrics"]
    exact = ("doc_id", "answer", "score", "prompt", "pruning", "macs", "reference", "error")
    assert [{k: s[k] for k in exact} for s in alone] == [
        {k: s[k] for k in exact} for s in together
    ]
    assert double.stdout.count("results:") == 1, "only one process may report"
    assert not list((tmp_path / "two").glob("runs/**/samples.rank*.jsonl"))


def test_journals_a_killed_group_left_behind_are_folded_in(tmp_path):
    for rank in (0, 1):
        group = ranks.Ranks(rank, 2, rank)
        with Journal(group.journal(tmp_path)) as journal:
            journal.append({"doc_id": rank, "answer": "a", "error": None})
    with group.journal(tmp_path).open("a") as stream:
        stream.write('{"doc_id": 7, "ans')  # the line being written when the process was killed
    assert ranks.fold(tmp_path, tmp_path / "samples.jsonl") == 2
    assert [e["doc_id"] for e in read_journal(tmp_path / "samples.jsonl")] == [0, 1]
    assert not list(tmp_path.glob("samples.rank*"))


def test_each_rank_takes_its_own_cuda_device():
    assert ranks.Ranks(3, 8, 3).device("cuda") == "cuda:3"
    assert ranks.Ranks(3, 8, 3).device("cuda:1") == "cuda:1"
    assert ranks.Ranks(3, 8, 3).device("cpu") == "cpu"


def test_the_group_is_hidden_from_libraries_and_put_back(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    assert ranks.secondary()
    with ranks.alone():
        assert "WORLD_SIZE" not in os.environ and not ranks.secondary()
    assert os.environ["WORLD_SIZE"] == "4"
