"""Retained performance: its definition, its unpruned run, its interval, its holes."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
from scipy import stats as reference

from tests import table_tools as tools
from vtprune.harness.reporting.tables import (
    analysis,
    command,
    frame,
    gate,
    lookup,
    render,
    retained,
    samples,
    spec,
    stats,
)
from vtprune.harness.request.errors import ConfigError
from vtprune.harness.store import index

TABLE = "mini_table2"
BENCHES = ("gqa", "pope", "textvqa")


# --- the definition ------------------------------------------------------------------------------


def printed() -> dict[tuple[str, str], dict[str, float]]:
    """A published table that prints its columns and their retained mean."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    file = gate.PUBLISHED / "angelslim_qwen25vl.csv"
    with file.open(newline="", encoding="utf-8") as stream:
        for line in csv.DictReader(stream):
            row = found.setdefault((line["method"], line["kept_percent"]), {})
            row[line["benchmark"]] = float(line["value"])
    return found


def test_the_printed_means_of_a_published_table_follow_from_its_columns():
    rows = printed()
    full = rows.pop(("baseline", "100"))
    whole = {name: row for name, row in rows.items() if len(row) > 1}
    assert len(whole) == 5 and len(full) == 11 and full["mme"] > 1000
    for row in whole.values():
        pairs = [retained.Pair(b, ({"score": row[b]},), ({"score": full[b]},)) for b in full]
        assert retained.Retained(lookup.DONE, tuple(pairs)).value == pytest.approx(
            row["mean_retained"], abs=0.006
        )


# --- the interval --------------------------------------------------------------------------------


def scores(n=300, each=2, seed=0, loss=0.1):
    """Unpruned and pruned scores of right and wrong, several questions to an image."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(size=n).repeat(each) + rng.normal(size=n * each)
    full = (hard < 0.5).astype(float)
    pruned = full * (rng.random(n * each) > loss)
    return full, pruned, np.arange(n).repeat(each)


def pair(name="gqa", **kind):
    full, pruned, clusters = scores(**kind)
    return name, stats.mean_of(pruned, clusters), stats.mean_of(full, clusters)


def test_the_interval_of_one_benchmark_equals_scipys_over_images():
    full, pruned, clusters = scores()
    sums = [np.bincount(clusters, scores) for scores in (pruned, full)]
    theirs = reference.bootstrap(
        sums, lambda a, b, axis=-1: a.sum(axis=axis) / b.sum(axis=axis), paired=True,
        vectorized=True, method="percentile", n_resamples=20000, rng=0,
    ).confidence_interval  # fmt: skip
    low, high = stats.mean_ratio([pair()])
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.002)


def test_benchmarks_are_drawn_independently_of_each_other():
    one, other = pair("gqa", seed=1), pair("pope", seed=1)  # the very same scores
    alone = np.subtract(*stats.mean_ratio([one])[::-1])
    both = np.subtract(*stats.mean_ratio([one, other])[::-1])
    assert both == pytest.approx(alone / np.sqrt(2), rel=0.06)


def test_the_interval_is_paired_and_the_same_at_every_call():
    full, _, clusters = scores()
    half = ("gqa", stats.mean_of(0.5 * full, clusters), stats.mean_of(full, clusters))
    assert stats.mean_ratio([half]) == pytest.approx((0.5, 0.5))  # no noise is left of a share
    assert stats.mean_ratio([pair()]) == stats.mean_ratio([pair()])


def test_an_unpruned_score_that_can_be_drawn_as_nothing_has_no_interval():
    alone = np.arange(3)
    full = stats.mean_of([1.0, 0, 0], alone)
    assert stats.mean_ratio([("gqa", stats.mean_of([0.0, 0, 0], alone), full)]) is None


def test_the_interval_covers_the_truth_as_often_as_it_says():
    covered, truth = 0, 0.9
    for seed in range(200):
        made = [pair(name, n=120, seed=2 * seed + i) for i, name in enumerate(("gqa", "pope"))]
        low, high = stats.mean_ratio(made, seed=seed)
        covered += low <= truth <= high
    assert 0.90 <= covered / 200 <= 0.985


def test_only_samples_that_both_answered_are_paired():
    def made(scores, ids):
        scores = np.array(scores, dtype=float)
        images = tuple(f"i{doc // 2}" for doc in ids)
        return samples.Samples(
            "gqa", scores.mean(), tuple(ids), scores, images, (None,) * len(ids), ("",) * len(ids)
        )

    full = made([100, 100, 0, 100, 100, 0], range(6))
    pruned = made([100, 100, 0, 100], [0, 1, 2, 4])
    one, base, n = samples.paired([pruned], full)
    assert n == 4 and len(one.terms) == len(base.terms) == 3
    assert (one.observed(), base.observed()) == (75, 75)
    moved = dataclasses.replace(pruned, images=("i0", "i0", "i7", "i2"))
    assert samples.paired([moved], full) is None, "a row of one number, another image"
    assert samples.paired([dataclasses.replace(pruned, score=12.3)], full) is None


# --- in a table ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table():
    return spec.load(TABLE)


@pytest.fixture
def store(tmp_path, table):
    tools.fill(tmp_path, table)
    return tmp_path


def column(grid, row):
    return next(v for v in grid.values.values() if (v.row.name, v.column) == (row, "retained"))


def change(results, pattern, **changed):
    """Change stored results; dotted names go into their identity."""
    for file in results.glob(f"runs/{pattern}/result.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        for name, value in changed.items():
            group, _, field = name.partition("__")
            (content["identity"][group] if field else content)[field or group] = value
        file.write_text(json.dumps(content), encoding="utf-8")


def test_every_table_has_the_column_and_the_mean_is_over_all_benchmarks(store, table):
    assert all("retained" in spec.load(name).extras for name in spec.names())
    change(store, "gqa/*/none-*", score=1000.0)  # points, as those of MME
    change(store, "gqa/*/gprune-*", score=500.0)
    grid = analysis.build(table, store, statistics=False)
    share = 100 * tools.right_wrong(0.7).mean() / tools.right_wrong(0.8).mean()
    assert column(grid, "gprune").value == pytest.approx((50 + share + share) / 3)
    assert column(grid, "baseline").value == 100
    values = [column(grid, row.name) for row in table.rows if not row.is_baseline]
    assert max(values, key=lambda v: v.value).best


def test_seeds_are_averaged_and_the_interval_is_around_the_value(store, table):
    grid = analysis.build(table, store)
    drawn = [tools.right_wrong(0.3, seed=seed).mean() for seed in range(3)]
    random, full = column(grid, "random"), tools.right_wrong(0.8).mean()
    assert random.value == pytest.approx(100 * np.mean(drawn) / full)
    assert random.low < random.value < random.high and random.n == 600
    assert "paired with the unpruned runs over 600 samples" in "; ".join(render.details(random))
    again = column(analysis.build(table, store), "random")
    assert (again.low, again.high) == (random.low, random.high)
    for text in (
        render.text(grid, render.Options(ci=True)), render.markdown(grid, render.Options()),
        render.latex(grid, render.Options()), render.html_page(grid, render.Options()),
    ):  # fmt: skip
        assert f"{random.value:.2f}" in text and "retained" in text
    assert f"random 0.7,random,0.7,retained,done,{random.value:.6g}" in render.csv_text(grid)


def test_without_an_unpruned_run_there_is_no_mean_and_status_says_why(store, table):
    for file in store.glob("runs/pope/*/none-*/result.json"):
        file.unlink()
    grid = analysis.build(table, store, statistics=False)
    gone = column(grid, "gprune")
    assert (gone.value, gone.status) == (None, lookup.MISSING)
    assert gone.reason == f"pope: {retained.ABSENT}"
    told = command.status(command.parse([f"table={TABLE}", "status", f"results={store}"]))
    assert f"no retained mean of any row: pope: {retained.ABSENT}" in told


def test_a_column_that_is_not_finished_is_named(store, table):
    for file in store.glob("runs/gqa/*/gprune-*/result.json"):
        file.unlink()
    grid = analysis.build(table, store, statistics=False)
    assert column(grid, "gprune").value is None and column(grid, "l2_norm_only").value is not None
    told = command.status(command.parse([f"table={TABLE}", "status", f"results={store}"]))
    assert "no retained mean of gprune 0.7: not finished: gqa" in told


def test_a_mean_over_some_columns_must_be_asked_for_and_is_said(store, table):
    for file in store.glob("runs/gqa/*/*/result.json"):
        file.unlink()
    part = dataclasses.replace(table, retained=("pope", "textvqa"))
    grid = analysis.build(part, store, statistics=False)
    assert column(grid, "gprune").value is not None
    assert "over pope, textvqa alone" in "\n".join(render.notes(grid, render.Options()))
    content = {"columns": list(BENCHES), "retained": ["gqaa"]}
    with pytest.raises(ConfigError, match="unknown column 'gqaa'; did you mean 'gqa'"):
        spec._checked_retained("mine", content)


def test_an_unpruned_run_of_other_versions_marks_the_mean(store, table):
    change(store, "gqa/*/none-*", versions__torch="2.13.0")
    for folder in store.glob("runs/gqa/*/none-*"):  # its key would be another one as well
        folder.rename(folder.with_name("none-0-00000000"))
    grid = analysis.build(table, store, statistics=False)
    assert retained.OTHER_CONDITIONS in column(grid, "gprune").marks
    assert "other package versions" in "\n".join(render.notes(grid, render.Options()))
    assert retained.OTHER_CONDITIONS not in column(analysis.build(table, store), "baseline").marks


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"data__content": "other"}, "gqa: its unpruned run has other data"),
        ({"metric": "another"}, "gqa: its unpruned run is scored by another"),
        ({"score": 0.0}, "gqa: the unpruned score is 0"),
    ],
)
def test_what_cannot_be_compared_is_not_averaged(store, table, changed, said):
    change(store, "gqa/*/none-*", **changed)
    if "metric" not in changed and "score" not in changed:
        for folder in store.glob("runs/gqa/*/none-*"):
            folder.rename(folder.with_name("none-0-00000000"))
    gone = column(analysis.build(table, store, statistics=False), "gprune")
    assert gone.value is None and gone.reason == said


def test_where_less_is_better_there_is_no_share(store, table):
    change(store, "gqa/*/gprune-*", higher_is_better=False)
    gone = column(analysis.build(table, store, statistics=False), "gprune")
    assert gone.value is None and "less is better" in gone.reason


def test_failed_samples_of_either_side_are_marked(store, table):
    change(store, "gqa/*/none-*", n_failed=1)
    assert "!" in column(analysis.build(table, store, statistics=False), "gprune").marks


# --- after a run ---------------------------------------------------------------------------------


def stored(results, method, bench="gqa"):
    (one,) = [r for r in index.finished(results) if (r["method"], r["bench"]) == (method, bench)]
    return one


def test_a_run_is_shown_beside_its_unpruned_run(store):
    cells = frame.frame(frame.row(stored(store, name)) for name in ("none", "gprune"))
    share = 100 * tools.right_wrong(0.7).mean() / tools.right_wrong(0.8).mean()
    shown = dict(zip(cells["method"], frame.display(cells)["retained"], strict=True))
    assert shown == {"none": "100.0 %", "gprune": f"{share:.1f} %"}
    (line,) = retained.summary([stored(store, "gprune")])
    assert line.startswith(f"retained: {share:.2f} % of the unpruned score, 95 % interval ")
    assert line.endswith("(paired over 200 samples)")
    assert retained.summary([stored(store, "none")]) == []


def test_several_benchmarks_of_one_run_have_a_mean(store):
    results = [stored(store, "gprune", bench) for bench in BENCHES]
    (line,) = retained.summary(results)
    assert "of the unpruned scores, mean over 3 benchmarks" in line and "600 samples" in line
    assert retained.summary([*results, stored(store, "l2norm")]) == []  # no one row


def test_a_run_without_an_unpruned_one_says_nothing_of_shares(store):
    for file in store.glob("runs/gqa/*/none-*/result.json"):
        file.unlink()
    cell = stored(store, "gprune")
    cells = frame.frame([frame.row(cell)])
    assert "retained" not in frame.display(cells) and retained.summary([cell]) == []
    assert any("run it with method=none" in note for note in frame.notes(cells))


def test_the_text_tower_of_a_method_is_no_part_of_the_unpruned_model():
    identity = {"method": {"name": "cdpruner"}, "model": {"checkpoint": "x", "clip": "y"}}
    plain = {"method": {"name": "gprune"}, "model": {"checkpoint": "x"}}
    made = [gate.baseline_key({"identity": one}) for one in (identity, plain)]
    assert made[0] == made[1]
