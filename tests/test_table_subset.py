"""bench.subset: seeded, stratified, nested, and nothing asked twice when it grows."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from vtprune.harness.reporting.tables import spec
from vtprune.harness.request import fingerprint, subset
from vtprune.harness.request.errors import ConfigError
from vtprune.harness.request.identity import Cell
from vtprune.harness.request.request import Bench
from vtprune.harness.store import reuse
from vtprune.harness.store.cell import Store
from vtprune.harness.store.journal import Journal

KINDS = ["a"] * 60 + ["b"] * 30 + ["c"] * 10


def rows(part, seed=0, columns=None, n=100, group=None):
    bench = Bench(subset=part, subset_seed=seed)
    return subset.rows(bench, columns or {"category": KINDS}, n, group or {})


@pytest.mark.parametrize(("text", "value"), [("10%", 0.1), ("10 %", 0.1), (0.25, 0.25), (1, 1.0)])
def test_parts(text, value):
    assert subset.fraction(text) == pytest.approx(value)


@pytest.mark.parametrize("wrong", ["0%", "150%", -1, 0, "some", True, "nan"])
def test_impossible_parts(wrong):
    with pytest.raises(ConfigError, match="subset"):
        subset.fraction(wrong)


def test_each_kind_has_its_share():
    for seed in range(20):
        counts = Counter(KINDS[row] for row in rows("10%", seed))
        assert counts == {"a": 6, "b": 3, "c": 1}


def test_seeds_differ_and_repeat():
    assert rows("20%") == rows(0.2) != rows("20%", seed=1)


def test_a_larger_part_contains_the_smaller():
    parts = [set(rows(f"{p}%")) for p in (5, 10, 33, 80, 100)]
    assert all(a < b for a, b in pairwise(parts))
    assert parts[-1] == set(range(100))


def test_every_row_has_the_same_chance():
    hits = np.zeros(100)
    for seed in range(400):
        hits[rows("10%", seed)] += 1
    assert hits.min() > 15 and hits.max() < 75  # 40 expected


def test_groups_stay_whole():
    group = {row: row // 2 for row in range(100)}
    chosen = rows("10%", group=group)
    assert len(chosen) == 10 and Counter(row // 2 for row in chosen).most_common(1)[0][1] == 2
    assert all(row ^ 1 in chosen for row in chosen)


def test_the_identity_changes_with_the_part_and_not_with_its_spelling():
    keys = [subset.identity({"subset": s, "subset_seed": 0}) for s in ("10%", 0.1, "20%")]
    assert keys[0] == keys[1] != keys[2]
    assert subset.identity({"subset": "100%"}) == subset.identity({"subset": None}) == {}


def test_two_choices_of_rows_are_refused():
    with pytest.raises(ConfigError, match="not two"):
        subset.check({"subset": "10%", "limit": 3})


def test_all_rows_of_a_table_get_the_same_subset():
    table = spec.load("mini_table1", {"bench.subset": "10%"})
    parts = {str(cell.asked["bench"]["subset"]) for cell in table.cells()}
    assert parts == {str({"fraction": 0.1, "seed": 0})}


# --- answers taken over --------------------------------------------------------------------------


GPRUNE = {"name": "gprune"}


def store(results, bench, method=None):
    identity = {"bench": bench, "method": method or {"name": "gprune"}, "versions": {"torch": "1"}}
    labels = {"bench": "gqa", "model": "m", "method": "gprune", "ratio": "0.5"}
    made = Store(results, Cell(identity, labels))
    made.open({"method": GPRUNE})
    return made


def answered(made, docs):
    with Journal(made.journal_file) as journal:
        for doc in docs:
            error = "boom" if doc == 3 else None
            journal.append({"doc_id": doc, "answer": "x", "error": error, "score": 1.0})


def test_answers_of_a_subset_are_taken_over(tmp_path):
    answered(store(tmp_path, {"name": "gqa", "subset": {"fraction": 0.1, "seed": 0}}), [1, 2, 3])
    whole = store(tmp_path, {"name": "gqa", "limit": None})
    assert reuse.into(whole, GPRUNE) == 2
    found = whole.samples()
    assert [entry["doc_id"] for entry in found] == [1, 2]  # 3 failed and is asked again
    assert all("score" not in entry and len(entry["reused"]) == 8 for entry in found)
    assert reuse.into(whole, GPRUNE) == 0  # begun already


@pytest.mark.parametrize(
    "change", [{"bench": {"name": "gqa", "task": "other"}}, {"method": {"name": "tome"}}]
)
def test_answers_to_another_request_are_not(tmp_path, change):
    answered(store(tmp_path, {"name": "gqa", "limit": 5}, method=change.get("method")), [1])
    assert reuse.into(store(tmp_path, change.get("bench", {"name": "gqa"})), GPRUNE) == 0


def test_answers_of_other_code_are_not(tmp_path, monkeypatch):
    answered(store(tmp_path, {"name": "gqa", "limit": 5}), [1])
    monkeypatch.setattr(fingerprint, "of_runtime", lambda: "edited")
    assert reuse.into(store(tmp_path, {"name": "gqa", "limit": None}), GPRUNE) == 0


@pytest.mark.slow
def test_extending_a_subset_asks_only_what_is_new(tmp_path):
    from tests.test_table_fill import run

    first = run("bench=mme", "bench.subset=20%", "data.samples=20", results=tmp_path)
    whole = run("bench=mme", "data.samples=20", results=tmp_path)
    assert (first["n_samples"], first["reused"]) == (4, 0)
    assert (whole["n_samples"], whole["reused"], whole["resumed_after"]) == (20, 4, 4)
    assert run("bench=mme", "bench.subset=100%", "data.samples=20", results=tmp_path) == whole
