"""The baseline gate: measured beside published, and what a pruned row then carries."""

from __future__ import annotations

import csv
import json

import pytest

from tests import stored
from tests.bench_tools import config
from vtprune.harness.reporting.tables import frame, gate
from vtprune.harness.request.benches import for_engine
from vtprune.harness.request.known import groups

FIELDS = "checkpoint data bench metric value unit tolerance decides engine protocol source note"


@pytest.fixture
def published(tmp_path):
    rows = [
        ["a/b", "hub", "gqa", "exact_match", "62.0", "%", "1.0", "yes", "lmms_eval", "p", "s", ""],
        ["a/b", "hub", "gqa", "exact_match", "66.0", "%", "1.0", "no", "lmms_eval", "p", "s", ""],
        ["a/b", "hub", "pope", "pope_accuracy|pope_f1_score", "87.8", "%", "0.5", "yes",
         "lmms_eval", "p", "s", "accuracy or F1 not stated"],
    ]  # fmt: skip
    folder = tmp_path / "published"
    folder.mkdir()
    with (folder / "baselines.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([FIELDS.split(), *rows])
    return folder


def result(bench="gqa", metrics=None, method=None, **changes):
    metrics = metrics or {"exact_match": 0.62}
    identity = {
        "model": {"checkpoint": "x"},
        "method": method or {"name": "none"},
        "bench": {"limit": None, "indices": None},
        "batch_size": 8,
    }
    return {
        "key": "",
        "identity": identity,
        "checkpoint_id": "a/b",
        "data": "hub",
        "bench": bench,
        "engine": "lmms_eval",
        "metrics": metrics,
        "scales": dict.fromkeys(metrics, 100),
        "n_failed": 0,
        **changes,
    }


def partial(**bench):
    made = result()
    made["identity"]["bench"] = {"limit": None, "indices": None, **bench}
    return made


@pytest.mark.parametrize(
    ("made", "status"),
    [
        (result(), gate.PASSED),
        (result(metrics={"exact_match": 0.6301}), gate.FAILED),
        (result(metrics={"exact_match": 0.66}), gate.FAILED),  # the 66.0 does not decide
        (result(n_failed=1), gate.PARTIAL),
        (partial(limit=100), gate.PARTIAL),
        (partial(indices=[1, 2]), gate.PARTIAL),
        (result(checkpoint_id="a/c"), gate.UNKNOWN),
        (result(data="mini"), gate.UNKNOWN),
        (result(engine="vlmevalkit"), gate.UNKNOWN),
        (result("pope", {"pope_accuracy": 0.90, "pope_f1_score": 0.876}), gate.PASSED),
        (result("pope", {"pope_accuracy": 0.90, "pope_f1_score": 0.90}), gate.FAILED),
    ],
)
def test_the_verdict(made, status, published):
    assert gate.judge(made, published).status == status


def test_the_lines_show_both_numbers_and_the_source(published):
    lines = gate.judge(result(metrics={"exact_match": 0.645}), published).lines()
    assert lines[0].startswith("baseline gate: failed")
    assert "measured 64.50, published 62.00 % (+2.50, OUTSIDE 1) [s, p]" in lines[1]
    assert "for information" in lines[2]


@pytest.mark.parametrize("made", [partial(limit=8), partial(subset="10%"), result(n_failed=1)])
def test_a_part_of_a_benchmark_is_not_called_outside(made, published):
    made["metrics"] = {"exact_match": 0.52}
    first, line, *_ = gate.judge(made, published).lines()
    assert first.startswith("baseline gate: partial") and "OUTSIDE" not in line
    assert "measured 52.00, published 62.00 % (-10.00, not judged) [s, p]" in line


def store(folder, made):
    name = f"{made['identity']['method']['name']}-{made.get('ratio', 0)}-{made['key'][:8]}"
    place = folder / "runs/gqa/m" / name
    place.mkdir(parents=True)
    made["directory"] = str(place)
    (place / "result.json").write_text(json.dumps(stored.result(**made)), encoding="utf-8")
    return made


def test_a_pruned_row_is_judged_by_its_own_baseline(tmp_path, published):
    pruned = result(method={"name": "gprune", "ratio": 0.9}, key="b" * 64, ratio=0.9)
    pruned = store(tmp_path, pruned)
    assert gate.status(pruned, published) == gate.NOT_RUN
    other = result(key="0" * 64)
    other["identity"]["batch_size"] = 1
    store(tmp_path, {**other, "key": gate.baseline_key(other)})
    assert gate.status(pruned, published) == gate.NOT_RUN, "another batch size is another baseline"
    store(tmp_path, {**result(), "key": gate.baseline_key(pruned)})
    assert gate.status(pruned, published) == gate.PASSED


def test_every_status_but_passed_puts_a_mark_behind_a_pruned_score():
    cells = frame.frame(
        {"model": "m", "method": method, "ratio": 0.5, "bench": "gqa", "data": "hub",
         "score": 60.0, "n": 4, "failed": 0, "gate": status}
        for method, status in [("none", "failed"), ("gprune", "passed"), ("random", "failed"),
                               ("fastv", "not run"), ("tome", "unknown")]
    )  # fmt: skip
    shown = dict(zip(cells["method"], frame.display(cells)["score"], strict=True))
    assert shown == {"none": "60.00", "gprune": "60.00", "random": "60.00†", "fastv": "60.00†",
                     "tome": "60.00†"}  # fmt: skip
    assert len([note for note in frame.notes(cells) if note.startswith(gate.MARK)]) == 3


def test_drawn_data_must_be_the_very_same(published, tmp_path):
    fields = ["m@1", "mini:abc", "gqa", "exact_match", "70", "%", "2", "yes", "lmms_eval", "p", "s"]
    with (published / "own_baselines.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([FIELDS.split(), [*fields, ""]])
    gate._published.cache_clear()
    made = result(metrics={"exact_match": 0.71}, data="mini", checkpoint_id="m@1")
    assert gate.judge(made, published).status == gate.UNKNOWN
    made["identity"]["data"] = {"content": "abc"}
    assert gate.judge(made, published).status == gate.PASSED


def test_the_shipped_model_has_reference_figures_of_its_own():
    """After training it again: python scripts/reference_figures.py"""
    from tests.engine_tools import ROOT
    from vtprune.harness.request.checkpoint import fingerprint

    wanted = f"embedded@{fingerprint(ROOT / 'models/embedded/llava')}"
    own = [row for row in rows() if row["data"].startswith("mini:")]
    assert {row["checkpoint"] for row in own} == {wanted}
    assert {row["engine"] for row in own} == {"lmms_eval", "vlmevalkit"}


def rows():
    for file in sorted(gate.PUBLISHED.glob("*baselines.csv")):
        with file.open(newline="", encoding="utf-8") as stream:
            yield from csv.DictReader(stream)


def test_published_rows_name_existing_benchmarks_metrics_and_checkpoints():
    from vtprune.harness.request.known import entries

    models = [entries("model", name) for name in groups()["model"]]
    checkpoints = {m["hub"] or m["name"] for m in models}
    for row in rows():
        assert sorted(row) == sorted([*FIELDS.split(), "preset"])
        bench = config(row["bench"])
        bench = for_engine(bench, {"name": row["engine"]})
        assert set(row["metric"].split("|")) <= {bench["metric"], *bench["others"]}
        assert row["checkpoint"].partition("@")[0] in checkpoints, row["checkpoint"]
        assert row["decides"] in ("yes", "no") and row["source"] and float(row["tolerance"]) > 0
        if bench.get("judge_replaces") and row["data"] == "hub":
            assert row["decides"] == "no", "a rule's verdicts are not on the published scale"


def test_the_papers_baseline_row_is_in_the_gate():
    with (gate.PUBLISHED / "gprune_table1.csv").open(newline="", encoding="utf-8") as stream:
        printed = {r["benchmark"]: r["value"] for r in csv.DictReader(stream)
                   if r["method"] == "baseline"}  # fmt: skip
    ours = {r["bench"]: r["value"] for r in rows() if "Table 1" in r["source"]}
    assert sorted(printed.values()) == sorted(ours.values()) and len(ours) == 8


@pytest.fixture
def under_presets(tmp_path):
    fields = [*FIELDS.split(), "preset"]
    number = ["a/b", "hub", "gqa", "exact_match", "62.0", "%", "1.0", "yes", "lmms_eval", "p", "s"]
    rows = [[*number, "", "llava_scripts"], [*number, "for pope", ""]]
    rows[1][2:4] = ["pope", "pope_accuracy"]
    with (tmp_path / "baselines.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([fields, *rows])
    return tmp_path


def test_a_number_of_another_preset_stands_beside_the_run_and_never_judges_it(under_presets):
    for measured in (0.62, 0.3):
        verdict = gate.judge(result(metrics={"exact_match": measured}, preset="lmms_eval"),
                             under_presets)  # fmt: skip
        assert verdict.status == gate.ELSEWHERE
        first, second = verdict.lines()
        assert "under another model.preset" in first
        assert "published 62.00 %" in second
        assert "model.preset=llava_scripts, this run: lmms_eval" in second


def test_a_number_of_the_same_preset_judges(under_presets):
    made = {0.62: gate.PASSED, 0.3: gate.FAILED}
    for measured, status in made.items():
        run = result(metrics={"exact_match": measured}, preset="llava_scripts")
        assert gate.judge(run, under_presets).status == status


def test_a_number_whose_preset_is_not_stated_judges_as_before(under_presets):
    run = result("pope", {"pope_accuracy": 0.62}, preset="vlmevalkit")
    assert gate.judge(run, under_presets).status == gate.PASSED


def test_every_deciding_number_we_ship_states_a_preset_that_exists():
    from vtprune.harness.request import presets

    for references in gate._published(gate.PUBLISHED).values():
        for one in references:
            assert one.preset in (presets.PRESETS if one.decides else (*presets.PRESETS, ""))
