"""Two processes on one cell give what one process gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from vtprune.harness.cell import ranks
from vtprune.harness.request.request import Request
from vtprune.harness.store.journal import Journal, read_journal
from vtprune.harness.store.lease import Lost

ROOT = Path(__file__).resolve().parent.parent
CELL = ["method=random", "ratio=0.5", "bench.limit=11", "batch_size=2", "model.threads=1"]


def start(results: Path, *arguments: str, processes: int = 1) -> subprocess.Popen:
    launcher = [sys.executable]
    if processes > 1:
        # standalone: at a free port, for other tests start groups at the same time
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(processes)]
    given = [c for c in CELL if not any(a.startswith(c.partition("=")[0]) for a in arguments)]
    command = [*launcher, "run.py", *arguments, *given, f"paths.results={results}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment, encoding="utf-8",
    )  # fmt: skip


def run(results: Path, *, processes: int = 1) -> subprocess.CompletedProcess:
    process = start(results, processes=processes)
    out, err = process.communicate(timeout=400)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def stored(results: Path) -> tuple[dict, list[dict]]:
    result = json.loads(next(results.glob("runs/**/result.json")).read_text(encoding="utf-8"))
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
    with group.journal(tmp_path).open("a", encoding="utf-8") as stream:
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


class Board:
    """The launcher's key-value store, for ranks that are threads."""

    def __init__(self):
        self.entries, self.lock = {}, threading.Lock()

    def set(self, key, value):
        self.entries[key] = value.encode()

    def get(self, key):
        return self.entries[key]

    def add(self, key, amount):
        with self.lock:
            self.entries[key] = self.entries.get(key, 0) + amount
            return self.entries[key]

    def check(self, keys):
        return all(key in self.entries for key in keys)


def together(*parts):
    """Run one function of a rank in each of some threads; what each returned or raised."""
    board, came = Board(), [None] * len(parts)

    def go(rank):
        try:
            came[rank] = parts[rank](ranks.Ranks(rank, len(parts), rank, board))
        except Exception as error:
            came[rank] = error

    threads = [threading.Thread(target=go, args=(r,), daemon=True) for r in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads), "a rank waits for ever"
    return came


def test_a_rank_that_fails_takes_the_others_along_and_the_next_cell_is_agreed_on_again():
    def part(fails):
        def run(group):
            seen = []
            for number, failing in enumerate([False, True, False]):
                try:
                    with group.cell():
                        verdict = group.agree(f"go {number}" if group.first else None)
                        group.wait()
                        if failing and fails:
                            raise ValueError("out of memory")
                        group.wait()
                        seen.append(verdict)
                except ValueError:
                    seen.append("own")
                except ranks.Elsewhere as error:
                    seen.append(str(error))
            return seen

        return run

    others, own = together(part(False), part(True))
    assert own == ["go 0", "own", "go 2"]
    assert others == ["go 0", "process 1: ValueError: out of memory", "go 2"]
    own, others = together(part(True), part(False))
    assert others == ["go 0", "process 0: ValueError: out of memory", "go 2"]


def test_all_ranks_leave_a_cell_that_was_taken_over_from_the_first():
    def part(group):
        with group.cell():
            if group.first:
                raise Lost("somebody has it")
            group.wait()

    assert [type(came) for came in together(part, part, part)] == [Lost] * 3


def test_ranks_go_by_what_the_first_one_saw(tmp_path, monkeypatch):
    """A result may appear between the looks of two ranks: only one look counts."""
    from vtprune.harness.cell import run as running
    from vtprune.harness.store import lease

    seen, store = [], SimpleNamespace(folder=tmp_path, guard=None)
    monkeypatch.setattr(running, "_checked_method", lambda prepared: "method")
    monkeypatch.setattr(running, "_say_finished", lambda *_: None)
    monkeypatch.setattr(running, "_compute_together", lambda *_: seen.append("computed"))
    asked = {"force": False, "sweep": {"lease_s": 60}, "method": {"name": "none"}}
    prepared = SimpleNamespace(request=Request(asked))

    def part(group):
        with group.cell():
            return running._run_together(group, prepared, store)

    monkeypatch.setattr(running, "_finished", lambda *_: {"score": 1})
    assert together(part, part) == [{"score": 1}, None] and seen == []
    monkeypatch.setattr(running, "_finished", lambda *_: None)
    held = lease.acquire(tmp_path)
    assert [type(came) for came in together(part, part)] == [lease.Busy] * 2 and seen == []
    held.release(False)
    store.result_file = tmp_path / "result.json"
    assert together(part, part) == [None, None] and seen == ["computed"] * 2
    assert lease.holder(tmp_path) is None
    with pytest.raises(lease.Lost):
        lease.acquire(tmp_path)
        store.guard()  # of the second rank: the number that its first one held


@pytest.mark.slow
def test_a_group_sweeps_waits_for_a_cell_held_elsewhere_and_goes_on(tmp_path):
    from vtprune.harness.store import lease

    assert run(tmp_path).returncode == 0
    (folder,) = tmp_path.glob("runs/*/*/random-*")
    for name in ("result.json", "samples.jsonl"):
        (folder / name).unlink()
    held = lease.acquire(folder)
    sweep = start(tmp_path, "-m", "ratio=0.5,0.75,1.5", processes=2)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("runs/*/*/random-0.75-*/result.json"))) < 1:
        assert time.monotonic() < deadline and sweep.poll() is None, sweep.communicate()
        time.sleep(0.2)
    assert not (folder / "result.json").exists()
    held.release(False)
    out, err = sweep.communicate(timeout=120)
    assert sweep.returncode == 1, err
    assert "later: " in out and "computed right now" in out
    assert "sweep: 3 cells, 2 done, 1 failed" in out and out.count("sweep: ") == 1
    assert err.count("failed: ") == 1 and "ratio must be" in err
    results = [
        json.loads(f.read_text(encoding="utf-8")) for f in tmp_path.glob("runs/*/*/*/result.json")
    ]
    assert [r["processes"] for r in results] == [2, 2]
    assert [len(read_journal(f)) for f in tmp_path.glob("runs/*/*/*/samples.jsonl")] == [11, 11]


def test_a_group_is_refused_by_launchers_with_processes_of_their_own(monkeypatch, capsys):
    from vtprune.harness import cli

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert cli.main(["-m", "hydra/launcher=joblib", "method=none"]) == 1
    assert "torchrun" in capsys.readouterr().err
