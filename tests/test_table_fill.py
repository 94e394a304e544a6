"""`python run.py -m experiment=<table>` fills exactly the table's cells, once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import command_tools
from vtprune.harness.reporting.tables import command, lookup, spec

ROOT = Path(__file__).resolve().parent.parent


def call(*arguments, results):
    line = ["run.py", *arguments, f"paths.results={results}", "progress=false"]
    return command_tools.run(*line)


def run(*arguments, results):
    """Run one cell in a process of its own; returns its stored result."""
    done = call(*arguments, results=results)
    assert done.returncode == 0, done.stderr
    folder = next(x for x in done.stdout.splitlines() if x.startswith("results: "))
    folder = Path(folder.removeprefix("results: ").strip())
    return json.loads((ROOT / folder / "result.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_experiment_fills_the_table_and_a_second_time_runs_nothing(tmp_path):
    small = ["bench.limit=2", "data.samples=8"]
    first = call("-m", "experiment=mini_table3", *small, results=tmp_path)
    assert first.returncode == 0, first.stderr
    table = spec.load("mini_table3", {"bench.limit": 2, "data.samples": 8})
    found = lookup.find(table, tmp_path)
    assert {cell.status for cell in found} == {lookup.DONE}
    stored = {str(f) for f in (tmp_path / "runs").glob("*/*/*/result.json")}
    assert {str(cell.folder / "result.json") for cell in found} == stored
    assert len(stored) == 42  # 16 rows, three benchmarks; the default rows stand there twice
    times = {file: Path(file).stat().st_mtime_ns for file in stored}
    request = [f"table={table.name}", *small, f"results={tmp_path}"]
    out = [export(request, tmp_path / name) for name in ("one", "two")]
    second = call("-m", "experiment=mini_table3", *small, results=tmp_path)
    assert second.returncode == 0, second.stderr
    assert "42 of 42 cells are finished already: nothing to run" in second.stdout
    assert {file: Path(file).stat().st_mtime_ns for file in stored} == times
    out.append(export(request, tmp_path / "three"))
    assert out[0] == out[1] == out[2]


def export(request, folder):
    files = command.export(command.parse([*request, "export", f"out={folder}"]))
    return [file.read_bytes() for file in files]


def test_rows_of_a_table_cannot_be_changed_from_the_command_line(tmp_path):
    done = call("-m", "experiment=mini_table3", "ratio=0.5", results=tmp_path)
    assert done.returncode == 2 and "row or column" in done.stderr
    assert done.stderr.count("\n") == 1
