"""The label tables: what a label means for each method, and the published table of Qwen2.5-VL."""

from __future__ import annotations

import csv
import dataclasses
from statistics import fmean

import pytest

from tests import table_tools as tools
from vtprune import methods
from vtprune.harness.reporting.tables import analysis, gate, lookup, published, render, spec
from vtprune.harness.request import check, identity, known

LABELS = {"llava15_labels": (192, 128, 64), "llava_next_labels": (128, 64, 32)}  # of 576
ANGELSLIM = "angelslim_qwen25vl"


@pytest.fixture(scope="module", params=LABELS)
def labelled(request):
    return spec.load(request.param), LABELS[request.param]


def built(cell):
    return methods.build(cell.config["method"]["name"], **identity.method_options(cell.config))


def ratios(table):
    return sorted({row.ratio for row in table.rows} - {0.0})


def test_the_labels_of_llava_next_are_those_of_its_five_crops():
    tokens = [5 * label for label in LABELS["llava_next_labels"]]
    assert tokens == [640, 320, 160]


def test_methods_before_the_language_model_keep_the_label(labelled):
    table, labels = labelled
    kept = dict(zip(ratios(table), labels, strict=True))
    seen = set()
    for cell in table.cells():
        if cell.row.is_baseline or cell.bench != table.benches[0]:
            continue
        method = built(cell)
        if isinstance(method, methods.TokenMethod):
            assert method.count(576) == kept[cell.row.ratio], cell.row.key
            seen.add(cell.row.method)
    assert len(seen) == 10 and {"random", "visionzip", "cdpruner", "gprune"} <= seen


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("sparsevlm", (206.5, 145.4, 82.3)),
        ("sparsevlm_plus", (206.8, 144.1, 81.8)),
        ("dart", (212.3, 152.3, 92.3)),
        ("pyramiddrop", (192, 128, 64)),
    ],
)
def test_methods_inside_the_language_model_process_what_the_notes_say(name, means):
    table = spec.load("llava15_labels")
    cells = [c for c in table.cells() if c.row.method == name and c.bench == table.benches[0]]
    cells.sort(key=lambda cell: cell.row.ratio)
    found = [fmean(built(cell).schedule(32, 576)) for cell in cells]
    assert found == pytest.approx(means, abs=1 if name == "pyramiddrop" else 0.06)


@pytest.mark.parametrize("name", spec.names())
def test_a_cell_is_known_by_the_ratio_its_run_has(name):
    """A label fixes the ratio of the run, whatever the row is called by."""
    for cell in spec.load(name).cells():
        if isinstance(cell.asked["method"].get("ratio"), (int, float)):
            assert cell.asked["method"]["ratio"] == check.ratio_of(dict(cell.config), True, [])


def test_a_labelled_cell_that_was_run_is_found(tmp_path):
    table = spec.load("llava15_labels")
    cell = next(c for c in table.cells() if c.row.key == "sparsevlm 0.666667")
    config = {**cell.config, "ratio": check.ratio_of(dict(cell.config), False, [])}
    assert config["ratio"] == 0.6667
    folder = tools.put(tmp_path, cell, tools.right_wrong(0.5))
    stored = identity.method_identity(config)
    assert stored == cell.asked["method"] and folder.is_dir()
    done = [f for f in lookup.find(table, tmp_path) if f.done]
    assert [f.wanted.row.key for f in done] == [cell.row.key]


# --- the published table of Qwen2.5-VL -----------------------------------------------------------


def test_published_numbers_of_qwen_stand_in_their_rows():
    printed = published.values(spec.load(ANGELSLIM))
    assert printed["vispruner 0.75", "docvqa"] == 77.39
    assert printed["baseline 0", "ocrbench"] == 853, "points of 1000, printed in per cent"
    assert printed["baseline 0", "retained"] == 100
    assert {column for row, column in printed if row.endswith(" 0.9")} == {"retained"}
    assert not any(row.startswith("random") for row, _ in printed)


def test_a_published_mean_over_other_columns_is_not_set_beside_ours():
    table = spec.load(ANGELSLIM)
    named = table.published["columns"]
    with (gate.PUBLISHED / table.published["file"]).open(newline="", encoding="utf-8") as stream:
        file = {line["benchmark"] for line in csv.DictReader(stream)} - {"mean_retained"}
    assert {*named.values()} == file
    there = {*named} & {*known.choices("bench")}
    assert {*table.benches} == there, f"a column of conf/table/{ANGELSLIM}.yaml for each of these"
    whole = dataclasses.replace(table, benches=tuple(named))
    part = dataclasses.replace(table, benches=("pope", "mme"))
    assert published.values(whole)["dart 0.75", "retained"] == 85.74  # as printed
    assert published.values(whole)["dart 0.9", "retained"] == 69.80
    shares = (84.34 / 87.80, 1625 / 1702)
    assert published.values(part)["dart 0.75", "retained"] == pytest.approx(100 * fmean(shares))
    assert ("dart 0.9", "retained") not in published.values(part)


def test_what_papers_print_no_mean_of_is_computed_from_their_columns():
    table = spec.load("gprune_table1")
    printed = published.values(table)
    shares = [printed["gprune 0.9", b] / printed["baseline 0", b] for b in table.benches]
    assert printed["gprune 0.9", "retained"] == pytest.approx(100 * fmean(shares))
    assert ("threshold 0.7 threshold=0.3", "retained") not in published.values(
        spec.load("gprune_table3")
    ), "Table 3 has no unpruned row"


def test_the_paper_stands_beside_what_is_retained(tmp_path):
    table = spec.load("mini_table2")
    tools.fill(tmp_path, table)
    grid = analysis.build(table, tmp_path, statistics=False)
    text = render.text(grid, render.Options(paper=True))
    mine = grid.values["gprune 0.7", "retained"].value
    theirs = published.values(table)["gprune 0.7", "retained"]
    assert f"{mine:.2f}" in text and f"({theirs:.2f} {mine - theirs:+.2f})" in text
    assert "computed here from the published columns" in text


def test_differences_of_a_part_of_a_benchmark_are_said_to_be_that(tmp_path):
    for changes in ({}, {"bench.limit": 40}):
        table = spec.load("mini_table2", changes)
        tools.fill(tmp_path, table)
        grid = analysis.build(table, tmp_path, statistics=False)
        notes = "\n".join(render.notes(grid, render.Options(paper=True)))
        assert ("only a part of the benchmarks" in notes) == bool(changes)
        assert "only a part" not in "\n".join(render.notes(grid, render.Options()))


def test_rows_of_an_encoder_without_cls_ask_for_what_it_has():
    for cell in spec.load(ANGELSLIM).cells():
        if not cell.row.is_baseline:
            wanted = type(built(cell)).without_cls
            assert {k: cell.config["method"][k] for k in wanted} == dict(wanted), cell.row.key
