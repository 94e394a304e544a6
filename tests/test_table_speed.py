"""Columns of speed come from the timing pass; timings that do not fit are marked or not taken."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import pytest

from tests import table_tools as tools
from tests.test_table_fill import call
from vtprune.harness.reporting.tables import analysis, command, lookup, render, spec, speed
from vtprune.harness.request.errors import ConfigError

TABLE = "mini_table1"
PLAIN = render.Options()
RATES = {"random": 40.0, "tome": 10.0, "fastv": 30.0, "gprune": 50.0}
FULL = 20.0


@pytest.fixture
def table():
    return spec.load(TABLE)


def stored(results, one, base=FULL, change=None, name="one"):
    """A timing.json as task=time writes it; ``change`` edits it before it is written."""
    model = one.config["model"]
    rate = RATES[one.row.method] * (1 + one.row.ratio)

    def side(per_second):
        return {
            "samples_per_s": {"median": per_second, "low": 0.9 * per_second, "high": per_second},
            "sum_of_stages_over_end_to_end": 1.01,
        }

    made = {
        "key": f"{one.row.key}-{name}".ljust(64, "0"),
        "model": model["name"],
        "method": one.row.method,
        "ratio": one.row.ratio,
        "budget": None,
        "identity": {
            "method": dict(one.asked["method"]),
            "images": list(one.asked["images"]),
            "text_tokens": 64,
            "timing": {"repeats": 5, "new_tokens": 16, "batch_sizes": [1], "clock": "wall"},
            "model": {"checkpoint": lookup.fingerprint(model), "dtype": "float32",
                      "attention": "sdpa", "device": "cpu", "threads": 1},
        },
        "batches": [
            {"batch_size": 1, "baseline": side(base), "pruned": side(rate),
             "comparison": {"measured": {"end_to_end": rate / base}}},
        ],
        "provenance": {"code": "abc", "commit": "def", "modified": False, "torch_threads": 1,
                       "versions": dict(tools.VERSIONS), "hardware": {"device": "cpu"}},
        "finished": "2026-01-01T00:00:00",
    }  # fmt: skip
    if change:
        change(made)
    folder = results / "runs" / "timing" / made["model"] / f"{one.row.key.replace(' ', '-')}-{name}"
    folder.mkdir(parents=True)
    (folder / "timing.json").write_text(json.dumps(made), encoding="utf-8")


@pytest.fixture
def timed(tmp_path, table):
    for one in speed.timings(table):
        stored(tmp_path, one)
    return tmp_path


def one_of(table, key="gprune 0.7"):
    return next(one for one in speed.timings(table) if one.row.key == key)


def found(table, results, key="gprune 0.7"):
    return next(one for one in speed.find(table, results) if one.wanted.row.key == key)


def printed(table, results, key, column):
    grid = analysis.build(table, results, statistics=False)
    return next(v for v in grid.values.values() if v.row.key == key and v.column == column)


def test_the_columns_hold_what_the_timing_pass_measured(timed, table):
    value = printed(table, timed, "gprune 0.7", "throughput")
    assert value.value == pytest.approx(50 * 1.7) and value.low == pytest.approx(0.9 * 50 * 1.7)
    assert not value.marks and value.status == lookup.DONE
    assert printed(table, timed, "gprune 0.7", "speedup").value == pytest.approx(50 * 1.7 / FULL)
    assert printed(table, timed, "tome 0.5", "speedup").value == pytest.approx(15 / FULL)
    assert printed(table, timed, "baseline 0", "throughput").value == FULL
    assert printed(table, timed, "baseline 0", "speedup").value == 1


def test_the_accuracy_pass_never_fills_a_column_of_speed(tmp_path):
    table = spec.load("gprune_table1", {"model": "embedded", "data": "mini"})
    tools.fill(tmp_path, table)  # every cell has a rate of its accuracy pass
    grid = analysis.build(table, tmp_path, statistics=False)
    for row in table.rows:
        for column in speed.COLUMNS:
            assert grid.at(row, column).value is None
            assert grid.at(row, column).status == lookup.MISSING


def test_speed_is_shown_before_any_cell_is_finished(timed, table):
    assert printed(table, timed, "gprune 0.7", "gqa").value is None
    assert printed(table, timed, "gprune 0.7", "throughput").value is not None


def test_a_speedup_is_a_quotient_within_one_run(tmp_path, table):
    """A row that was timed on a faster machine does not become a faster method."""
    for one in speed.timings(table):
        fast = one.row.key == "gprune 0.7"
        change = (lambda r: r["provenance"]["hardware"].update(device="H200")) if fast else None
        stored(tmp_path, one, base=10 * FULL if fast else FULL, change=change)
    value = printed(table, tmp_path, "gprune 0.7", "speedup")
    assert value.value == pytest.approx(50 * 1.7 / (10 * FULL)) and value.marks == ["b"]
    assert printed(table, tmp_path, "baseline 0", "throughput").value == FULL
    assert printed(table, tmp_path, "baseline 0", "throughput").high == FULL


@pytest.mark.parametrize(
    ("mark", "change"),
    [
        ("a", lambda r: r["provenance"]["versions"].update(torch="2.13.0")),
        ("b", lambda r: r["provenance"]["hardware"].update(device="another")),
        ("b", lambda r: r["identity"]["model"].update(attention="eager")),
        ("b", lambda r: r["identity"]["model"].update(threads=2)),
        ("d", lambda r: r["provenance"].update(code="other")),
        ("s", lambda r: r["batches"][0]["pruned"].update(sum_of_stages_over_end_to_end=0.96)),
        ("s", lambda r: r["batches"][0]["baseline"].update(sum_of_stages_over_end_to_end=1.04)),
    ],
)
def test_a_timing_that_does_not_go_with_the_others_is_marked(tmp_path, table, mark, change):
    for one in speed.timings(table):
        stored(tmp_path, one, change=change if one.row.key == "gprune 0.7" else None)
    marked = {one.wanted.row.key: one.marks for one in speed.find(table, tmp_path) if one.marks}
    assert marked == {"gprune 0.7": [mark]}
    grid = analysis.build(table, tmp_path, statistics=False)
    for column in speed.COLUMNS:
        assert [v.row.key for v in grid.values.values() if v.column == column and v.marks] == [
            "gprune 0.7"
        ]
    assert render.MEANING[mark] in "\n".join(render.notes(grid, PLAIN))


@pytest.mark.parametrize("part", ["dtype", "attention", "device"])
def test_a_timing_unlike_its_rows_scores_is_marked(tmp_path, table, part):
    tools.fill(tmp_path, table)
    for file in tmp_path.glob("runs/*/*/*/result.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        content["identity"]["model"]["attention"] = "sdpa"
        file.write_text(json.dumps(content), encoding="utf-8")
    for one in speed.timings(table):
        stored(tmp_path, one)
    assert not any(one.marks for one in speed.find(table, tmp_path, lookup.find(table, tmp_path)))
    for file in tmp_path.glob("runs/*/*/gprune-0.7-*/result.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        content["identity"]["model"][part] = "other"
        file.write_text(json.dumps(content), encoding="utf-8")
    cells = lookup.find(table, tmp_path)
    marked = {one.wanted.row.key: one.marks for one in speed.find(table, tmp_path, cells)}
    assert {key for key, marks in marked.items() if marks} == {"gprune 0.7"}
    assert marked["gprune 0.7"] == ["f"]


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["identity"]["model"].update(checkpoint="other"),
        lambda r: r["identity"]["model"].update(weights="random"),
        lambda r: r["identity"]["method"].update(threshold=0.6),
        lambda r: r["identity"]["method"].update(ratio=0.69),
        lambda r: r["identity"]["method"].update(ratio_mode="mean"),
        lambda r: r["identity"].update(images=["336x336"]),
        lambda r: r["identity"].update(text_tokens=32),
        lambda r: r["identity"]["timing"].update(new_tokens=1),
        lambda r: r["identity"]["timing"].update(clock="cpu"),
        lambda r: r["batches"][0].update(batch_size=8),
    ],
)
def test_a_timing_of_something_else_is_not_taken(tmp_path, table, change):
    stored(tmp_path, one_of(table), change=change)
    assert found(table, tmp_path).status == lookup.MISSING
    stored(tmp_path, one_of(table), name="two")
    assert found(table, tmp_path).status == lookup.DONE


def test_of_several_timings_the_longest_counts(tmp_path, table):
    for name, repeats in (("one", 5), ("two", 50), ("three", 7)):
        stored(tmp_path, one_of(table), name=name,
               change=lambda r, n=repeats: r["identity"]["timing"].update(repeats=n))  # fmt: skip
    assert speed.rounds(found(table, tmp_path)) == 50


def test_a_timing_under_a_budget_is_found_by_its_budget(tmp_path):
    table = spec.load("gprune_table1_isoflops", {"model": "embedded", "data": "mini"})
    one = one_of(table)
    assert "budget.flops=0.365" in one.arguments
    budget = one.asked["method"]["ratio"]

    def solved(result):
        result["identity"]["method"]["ratio"] = 0.4321
        result["budget"] = budget

    stored(tmp_path, one, change=solved)
    assert found(table, tmp_path).status == lookup.DONE
    assert found(table, tmp_path, "gprune 0.5").status == lookup.MISSING


def test_status_and_plan_name_the_missing_timings(tmp_path, table):
    every = speed.timings(table)
    for one in every[1:]:
        stored(tmp_path, one)
    request = command.parse([f"table={TABLE}", "plan", "all", f"results={tmp_path}"])
    told = command.status(request)
    assert "timings: 11 done, 1 missing" in told and "timing: missing" in told
    plan = command.plan(request)
    assert f"python run.py -m table={TABLE} task=time paths.results={tmp_path}" in plan
    lines = [line for line in plan.splitlines() if line.startswith("python run.py task=time")]
    (line,) = lines
    assert shlex.split(line)[2:-1] == every[0].arguments
    assert "method=random" in line and "ratio=0.5" in line and "bench" not in line


def test_a_table_without_a_column_of_speed_wants_no_timing(tmp_path):
    table = spec.load("mini_table2")
    assert speed.find(table, tmp_path) == []
    with pytest.raises(ConfigError, match="no column of speed"):
        speed.timings(table)


def test_the_foot_file_names_the_timings(timed, table):
    grid = analysis.build(table, timed, statistics=False)
    foot = list(csv.DictReader(render.provenance(grid).splitlines()))
    assert [line["row"] for line in foot if line["bench"] == "timing"] == [
        one.row.key for one in speed.timings(table)
    ]
    line = next(
        line for line in csv.DictReader(render.csv_text(grid).splitlines())
        if line["row"] == "gprune 0.7" and line["column"] == "speedup"
    )  # fmt: skip
    assert line["keys"] == "gprune 0" and float(line["paper"]) == 2.09


def test_the_notes_say_how_speed_was_measured(timed, table):
    notes = "\n".join(render.notes(analysis.build(table, timed, statistics=False), PLAIN))
    assert "timing pass at batch 1" in notes and "672x672" in notes and "5 rounds" in notes


@pytest.mark.slow
def test_the_experiment_with_task_time_fills_the_column_once(tmp_path):
    options = ["task=time", "timing.repeats=1", "timing.warmup=0", "timing.new_tokens=2"]
    table = spec.load(TABLE, {"timing.new_tokens": 2})
    first = call("-m", f"experiment={TABLE}", *options, results=tmp_path)
    assert first.returncode == 0, first.stderr
    every = speed.find(table, tmp_path)
    assert {one.status for one in every} == {lookup.DONE} and len(every) == 12
    assert all(speed.speedup(one) > 0 for one in every)
    files = {f: f.stat().st_mtime_ns for f in Path(tmp_path).glob("runs/timing/*/*/timing.json")}
    assert len(files) == 12
    second = call("-m", f"experiment={TABLE}", *options, results=tmp_path)
    assert second.returncode == 0 and second.stdout.count("force=true times it again") == 12
    assert {file: file.stat().st_mtime_ns for file in files} == files
    assert not list(Path(tmp_path).glob("runs/*/*/*/result.json"))
