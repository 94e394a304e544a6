"""`experiment=controls`: any table with random, uniform, pool, downsample and text_only."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests import command_tools
from vtprune.harness.reporting.tables import command, controls, lookup, spec
from vtprune.harness.request.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
FULL = ("random", "uniform", "pool", "downsample")


@pytest.mark.parametrize("name", spec.names())
def test_every_table_can_be_extended_and_loses_no_row(name):
    table = spec.load(name)
    made = controls.extend(table)
    by_budget = any(k.startswith("budget.") for row in table.rows for r in row.runs for k in r)
    for ratio in {row.ratio for row in table.rows if 0 < row.ratio < 1}:
        group = [row for row in made.rows if row.ratio == ratio]
        there = {row.method for row in group}
        assert there >= set(FULL) - ({"downsample"} if by_budget else set())
        assert not (by_budget and "downsample" in there), "no ratio is solved for it"
        for row in group:
            if row.method == "random":
                assert len({run.get("seed") for run in row.runs}) >= 3
    assert sum(row.method == "text_only" for row in made.rows) == 1
    kept = [row.key for row in made.rows if row.key in {r.key for r in table.rows}]
    assert kept == [row.key for row in table.rows]
    keys = [row.key for row in made.rows]
    assert len(set(keys)) == len(keys) and made.name != table.name
    assert controls.extend(made).rows == made.rows


def test_controls_meet_the_budget_of_their_group_and_the_settings_of_the_table():
    made = controls.extend(spec.load("gprune_table1_isoflops"))
    for row in made.rows:
        if row.method in ("uniform", "pool", "random"):
            other = next(r for r in made.rows if r.method == "gprune" and r.ratio == row.ratio)
            want = {k: v for k, v in other.runs[0].items() if k.startswith("budget.")}
            assert want and want.items() <= row.runs[0].items()
    cells = controls.extend(spec.load("mini_table1")).cells()
    assert {cell.config["model"]["name"] for cell in cells} == {"embedded"}
    (alone,) = {cell.config["ratio"] for cell in cells if cell.row.method == "text_only"}
    assert alone == 1


def test_a_row_of_random_with_one_seed_gets_three():
    table = spec.load("mini_table1")
    one = tuple(
        dataclasses.replace(row, runs=row.runs[:1]) if row.method == "random" else row
        for row in table.rows
    )
    made = controls.extend(dataclasses.replace(table, rows=one))
    assert [len(r.runs) for r in made.rows if r.method == "random"] == [3, 3, 3]


def test_the_commands_of_an_extended_table_name_the_experiment(capsys):
    request = command.parse(["table=mini_table1", "controls=true", "plan", "results=/nowhere"])
    assert "-m table=mini_table1 controls=true " in command.plan(request)
    assert command.main(["table=mini_table1", "controls=yes"]) == ConfigError.exit_code
    assert "controls must be true or false" in capsys.readouterr().err


@pytest.mark.slow
def test_the_experiment_fills_the_extended_table(tmp_path):
    small = ["bench.limit=2", "data.samples=4"]
    line = ["run.py", "-m", "experiment=controls", "table=mini_table3", *small]
    line += [f"paths.results={tmp_path}", "progress=false"]
    done = command_tools.run(*line)
    assert done.returncode == 0, done.stderr
    table = controls.extend(spec.load("mini_table3", {"bench.limit": 2, "data.samples": 4}))
    assert {cell.status for cell in lookup.find(table, tmp_path)} == {lookup.DONE}
    line = ["scripts/tables.py", "table=mini_table3", "controls=true", *small]
    line.append(f"results={tmp_path}")
    shown = command_tools.run(*line)
    assert shown.returncode == 0, shown.stderr
    for label in ("No picture", "Uniform", "Average pooling", "Smaller picture", "Random"):
        assert label in shown.stdout
