"""`tables.py table=NAME random`: which rows beat random, as the table's own tests have it."""

from __future__ import annotations

import numpy as np
import pytest

from tests import table_tools
from vtprune.harness.reporting.tables import analysis, command, spec, verdicts

pytestmark = pytest.mark.slow


def scores(cell):
    """G-Prune right where random is and on 40 more questions; FastV on 40 fewer; ToMe the same."""
    right = np.zeros(200)
    right[: {"gprune": 140, "fastv": 60}.get(cell.row.method, 100)] = 1
    return right


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    results = tmp_path_factory.mktemp("store")
    table_tools.fill(results, spec.load("mini_table1"), scores)
    return results


def test_every_benchmark_of_a_row_is_better_worse_or_open(filled):
    grid = analysis.build(spec.load("mini_table1"), filled)
    found = {v.row.key: v for v in verdicts.against_random(grid)}
    assert set(found) == {r.key for r in grid.table.rows if r.method not in ("none", "random")}
    for verdict in found.values():
        named = (*verdict.better, *verdict.worse, *verdict.open)
        assert sorted(named) == sorted(b for b in grid.table.benches if b in named)
        assert len(named) >= 6
        full = {"gprune": verdict.better, "fastv": verdict.worse, "tome": verdict.open}
        assert len(full[verdict.row.method]) == len(named), verdict
        for bench in named:
            marked = analysis.NOT_FROM_RANDOM in grid.at(verdict.row, bench).marks
            assert marked == (bench not in verdict.better)


def test_the_page_lists_the_best_of_each_ratio_first(filled, capsys):
    assert command.main(["table=mini_table1", "random", f"results={filled}"]) == 0
    page = capsys.readouterr().out
    for part in page.split("## ratio ")[1:]:
        assert part.index("| G-Prune |") < part.index("| ToMe |") < part.index("| FastV |")
    line = next(x for x in page.splitlines() if x.startswith("| FastV |"))
    assert line.split(" | ")[1] == "-" and "TextVQA" in line.split(" | ")[2]


def test_an_empty_store_has_nothing_to_compare(tmp_path, capsys):
    assert command.main(["table=mini_table1", "random", f"results={tmp_path}"]) == 0
    assert "No row can be compared" in capsys.readouterr().out
