"""Tables as configs: what they name, what is missing, what is printed, and marks of odd cells."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests import table_tools as tools
from vtprune import places
from vtprune.harness.reporting.tables import (
    analysis,
    command,
    cost,
    lookup,
    published,
    render,
    retained,
    samples,
    spec,
    speed,
    stats,
)
from vtprune.harness.request import compose as wanted
from vtprune.harness.request import resolvers as _resolvers  # noqa: F401
from vtprune.harness.request.errors import ConfigError
from vtprune.harness.request.identity import canonical_json
from vtprune.harness.store import lease

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
TABLE = "mini_table2"
PLAIN = render.Options()


@pytest.fixture
def table():
    return spec.load(TABLE)


@pytest.fixture
def filled(tmp_path, table):
    tools.fill(tmp_path, table)
    return tmp_path


def lines(text):
    return list(csv.DictReader(text.splitlines()))


def value(grid, row, column):
    return next(v for v in grid.values.values() if v.row.name == row and v.column == column)


# --- what a table names --------------------------------------------------------------------------


def test_table_1_has_the_rows_and_columns_of_the_paper():
    table = spec.load("gprune_table1")
    assert [r.key for r in table.rows] == ["baseline 0"] + [
        f"{m} {r}" for m in ("random", "tome", "fastv", "gprune") for r in (0.5, 0.7, 0.9)
    ]
    assert len(table.benches) == 8
    assert len(table.cells()) == 8 * (13 + 2 * 3)  # random: three seeds
    assert all(c.config["method"].get("ratio_mode") in ("local", "mean") for c in table.cells())
    pruned = [c for c in table.cells() if not c.row.is_baseline]
    assert {c.config["method"]["ratio_mode"] for c in pruned} == {"local"}


@pytest.mark.parametrize("name", [*(f"gprune_table{n}" for n in (1, 2, 3)), "fig3", "fig4"])
def test_what_stands_beside_published_numbers_is_the_released_variant(name):
    table = spec.load(name)
    cells = [c for c in table.cells() if c.row.method == "gprune"]
    variants = {c.row.name: c.config["method"]["variant"] for c in cells}
    compared = {row for row in variants if not row.endswith("_float32")}
    assert {variants[row] for row in compared} == {"released_fp16"}
    assert {variants[row] for row in {*variants} - compared} <= {"released"}
    if name == "gprune_table3":
        assert {*variants} - compared == {f"{row}_float32" for row in compared}


def test_the_iso_table_differs_in_the_convention_alone():
    paper, iso = (spec.load(f"gprune_table1{end}").cells() for end in ("", "_iso"))
    for a, b in zip(paper, iso, strict=True):
        changed = {**b.overrides}
        if not a.row.is_baseline:
            assert changed.pop("method.ratio_mode") == "mean"
            changed["method.ratio_mode"] = "local"
        assert changed == dict(a.overrides)


def test_under_a_budget_a_stored_cell_is_found_by_its_budget(tmp_path):
    import yaml

    table = spec.load("gprune_table1_isoflops", {"model": "embedded", "data": "mini"})
    cell = next(c for c in table.cells() if c.row.name == "gprune")
    assert "budget.flops=0.547" in cell.arguments
    assert not any(a.startswith("ratio=") for a in cell.arguments)
    folder = tools.put(tmp_path, cell, tools.right_wrong(0.5))
    content = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    content["identity"]["method"]["ratio"] = 0.4321  # what the budget was solved to
    (folder / "result.json").write_text(json.dumps(content), encoding="utf-8")
    for share, row in ((0.547, 0.5), (0.365, 0.7)):
        config = {**cell.config, "budget": {**cell.config["budget"], "flops": share}}
        text = yaml.safe_dump({"config": json.loads(json.dumps(config))})
        (folder / "cell.yaml").write_text(text, encoding="utf-8")
        found = lookup.find(table, tmp_path)
        (filled,) = [f.wanted.row.ratio for f in found if f.done]
        assert filled == row


@pytest.mark.parametrize("name", spec.names())
def test_a_cell_asks_for_what_hydra_composes(name):
    cells = spec.load(name).cells()
    with initialize_config_dir(str(places.CONF), version_base="1.3"):
        for cell in {c.row.key: c for c in cells}.values():
            composed = OmegaConf.to_container(compose("config", cell.arguments), resolve=False)
            assert canonical_json(wanted.asked(composed)) == canonical_json(cell.asked)


@pytest.mark.parametrize("name", spec.names())
def test_every_table_has_an_experiment_that_fills_it(name):
    text = (places.CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    assert f"table: {name}" in text and "override /hydra/sweeper: table" in text


@pytest.mark.parametrize("name", [n for n in spec.names() if "table" in n and "iso" not in n])
def test_every_row_of_the_paper_is_found(name):
    table = spec.load(name)
    printed = published.values(table)
    for row in table.rows:
        for bench in table.benches:
            # The paper printed one form; the rows in float32 stand beside it, not in its place.
            assert ((row.key, bench) in printed) == ("_float32" not in row.key)
    rows = {row.key for row in table.rows}
    for row, column in published.annotations(table):
        assert row in rows and column in [*table.benches, *table.extras]


def test_a_published_value_belongs_to_method_ratio_and_option():
    first, third = (published.values(spec.load(f"gprune_table{n}")) for n in (1, 3))
    assert first["tome 0.9", "gqa"] == 59.72 and first["random 0.5", "gqa"] == 64.95
    assert first["gprune 0.7", "throughput"] == 5.21 and first["baseline 0", "speedup"] == 1
    assert third["threshold 0.7 threshold=0.7", "average"] == 71.99
    assert third["iterations 0.7 iterations=50", "gqa"] == 64.05


def test_a_typo_is_one_line():
    for wrong, said in (
        (["table=mini_tabel1"], "did you mean"),
        (["table=mini_table1", "statsu"], "unknown command"),
        (["table=mini_table1", "bench.limt=3"], "unknown option"),
        (["table=mini_table1", "ratio=0.3"], "row or column"),
    ):
        with pytest.raises(ConfigError, match=said):
            command.parse(wrong)


# --- unfinished tables ---------------------------------------------------------------------------


def test_the_plan_of_an_empty_store_names_every_cell_once(tmp_path, table):
    request = command.parse([f"table={TABLE}", "plan", "all", f"results={tmp_path}"])
    told = command.plan(request)
    commands = [line for line in told.splitlines() if line.startswith("python run.py data=")]
    assert len(commands) == len(set(commands)) == 21
    assert f"python run.py -m table={TABLE}" in told
    assert "no estimate" in told


def test_a_cell_named_twice_is_planned_once(tmp_path):
    request = command.parse(["table=mini_table3", "plan", "all", f"results={tmp_path}"])
    assert command.plan(request).count("python run.py data=") == 42  # 48 less 6 of the defaults


def test_the_plan_keeps_what_was_changed(tmp_path):
    given = [f"table={TABLE}", "plan", "all", "bench.limit=8", f"results={tmp_path}"]
    request = command.parse(given)
    told = command.plan(request).splitlines()
    assert sum("bench.limit=8" in line for line in told) == 1 + 21


def test_the_time_left_grows_with_the_samples(tmp_path, table):
    big, small = table.cells()[0], table.cells()[-1]
    tools.put(tmp_path, big, tools.right_wrong(0.5, n=3600))  # 4 s
    tools.put(tmp_path, small, tools.right_wrong(0.5, n=36), wall_s=360.0)
    found = lookup.find(table, tmp_path)
    left = {f.wanted.bench: f for f in found if not f.done}
    assert command.estimate([*found[:1], found[-1], left["textvqa"]]).endswith(
        "1 cells to run, about 6 min one after another"
    )
    assert "a minute" in command.estimate([*found[:1], found[-1], left["gqa"]])


def test_holes_are_printed_and_never_averaged(tmp_path, table):
    for cell in table.cells():
        if (cell.row.name, cell.bench) != ("gprune", "pope"):
            tools.put(tmp_path, cell, tools.by_method(cell))
    grid = analysis.build(table, tmp_path)
    assert value(grid, "gprune", "pope").status == lookup.MISSING
    assert value(grid, "gprune", "average").value is None
    assert value(grid, "graph_only", "average").value is not None
    assert not any(grid.at(row, "pope").best for row in table.rows)  # the best is not known yet
    text = render.text(grid, PLAIN)
    assert "·" in text and "not run yet" in text
    plan = command.plan(command.parse([f"table={TABLE}", "plan", "all", f"results={tmp_path}"]))
    commands = [line for line in plan.splitlines() if line.startswith("python run.py data=")]
    assert len(commands) == 1 and "method=gprune" in commands[0] and "bench=pope" in commands[0]


def test_one_missing_seed_makes_the_row_a_hole(tmp_path, table):
    for cell in table.cells():
        if cell.config["seed"] != 2:
            tools.put(tmp_path, cell, tools.by_method(cell))
    assert value(analysis.build(table, tmp_path), "random", "gqa").value is None


def test_running_and_stopped_cells(tmp_path, table):
    import yaml

    cell = table.cells()[0]
    folder = tmp_path / "runs" / cell.bench / "embedded" / "random-0.7-00000000"
    folder.mkdir(parents=True)
    text = yaml.safe_dump({"identity": json.loads(json.dumps(tools.identity(cell)))})
    (folder / "cell.yaml").write_text(text, encoding="utf-8")
    answered = [json.dumps({"doc_id": n, "error": None}) + "\n" for n in range(2)]
    (folder / "samples.jsonl").write_text("".join(answered), encoding="utf-8")
    held = lease.acquire(folder)
    found = lookup.find(table, tmp_path)[0]
    assert (found.status, found.answered) == (lookup.RUNNING, 2) and found.reason
    held.release(False)
    found = lookup.find(table, tmp_path)[0]
    assert (found.status, found.answered) == (lookup.FAILED, 2)
    assert "stopped before it was finished" in found.reason
    assert "1 failed/2 missing (2 answered)" in command.status(
        command.parse([f"table={TABLE}", f"results={tmp_path}"])
    )


def test_what_no_run_can_fill_says_why(tmp_path):
    table = spec.load("gprune_table1_iso", {"model": "embedded", "data": "mini"})
    found = lookup.find(table, tmp_path)
    fastv = [f for f in found if f.wanted.row.name == "fastv"]
    assert {f.wanted.row.ratio for f in fastv if f.status == lookup.IMPOSSIBLE} == {0.7, 0.9}
    assert all("at most 0.667" in f.reason for f in fastv if f.status == lookup.IMPOSSIBLE)
    assert not {f.wanted.row.ratio for f in command.todo(fastv)} & {0.7, 0.9}


# --- printed tables ------------------------------------------------------------------------------


def test_all_forms_without_torch_and_twice_the_same_bytes(filled, tmp_path):
    spy = "import runpy,sys; sys.argv=sys.argv[1:]\ntry: runpy.run_path(sys.argv[0], " \
          "run_name='__main__')\nfinally: print('torch' in sys.modules)"  # fmt: skip
    out = []
    for name in ("one", "two"):
        folder = tmp_path / name
        command_line = [sys.executable, "-c", spy, "scripts/tables.py", f"table={TABLE}", "export",
                        f"results={filled}", f"out={folder}", "compare=paper"]  # fmt: skip
        done = subprocess.run(
            command_line, cwd=ROOT, capture_output=True, text=True, encoding="utf-8"
        )
        assert done.stdout.rstrip().endswith("False"), done.stderr
        out.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert out[0] == out[1]
    assert sorted(out[0]) == sorted(
        f"{TABLE}.{end}" for end in ("csv", "md", "tex", "html", "provenance.csv")
    )


def test_the_numbers_are_those_of_the_store(filled, table):
    grid = analysis.build(table, filled)
    gprune = value(grid, "gprune", "gqa")
    assert gprune.value == tools.right_wrong(0.7).mean()
    assert gprune.best and not value(grid, "l2_norm_only", "gqa").best
    assert gprune.low < gprune.value < gprune.high
    random = value(grid, "random", "gqa")
    seeds = [tools.right_wrong(0.3, seed=s).mean() for s in range(3)]
    assert random.value == pytest.approx(sum(seeds) / 3) and random.spread > 0
    assert value(grid, "gprune", "average").value == pytest.approx(gprune.value)
    assert value(grid, "baseline", "gqa").agreement == 100
    assert 50 < gprune.agreement < 100


def test_agreement_with_the_unpruned_model_stands_in_each_cell(filled, table):
    grid = analysis.build(table, filled)
    share = value(grid, "gprune", "gqa").agreement
    text = render.text(grid, render.Options(agree=True))
    assert f" ={share:.0f}%" in text and "equal to the unpruned model's" in text
    assert "=100%" not in text  # nothing beside the unpruned model itself
    assert command.parse([f"table={TABLE}", "agree=true"]).options.agree
    with pytest.raises(ConfigError, match="ci must be true or false"):
        command.parse([f"table={TABLE}", "ci=yes"])


def test_rows_are_tested_against_the_best_and_against_random(filled, table):
    grid = analysis.build(table, filled)
    gprune, l2norm = value(grid, "gprune", "gqa"), value(grid, "l2_norm_only", "gqa")
    assert analysis.NOT_FROM_RANDOM not in gprune.marks + l2norm.marks
    assert l2norm.against["best"].difference < 0 and l2norm.adjusted["best"] < 0.05
    assert l2norm.adjusted["best"] >= l2norm.against["best"].p
    assert l2norm.against["best"].test == "McNemar"
    assert "best" not in gprune.against


def test_p_values_are_adjusted_over_the_row(filled, table):
    grid = analysis.build(table, filled)
    for row in table.rows:
        for name in ("best", "random"):
            values = [grid.at(row, bench) for bench in table.benches]
            tested = [v for v in values if name in v.against]
            raw = [v.against[name].p for v in tested]
            assert [v.adjusted[name] for v in tested] == stats.holm(raw)
            assert not raw or row.name != "l2_norm_only" or raw < [v.adjusted[name] for v in tested]


def test_random_at_the_same_ratio_is_what_a_row_is_tested_against(tmp_path):
    table = spec.load("gprune_table1", {"model": "embedded", "data": "mini"})
    tools.fill(tmp_path, table)
    grid = analysis.build(table, tmp_path, statistics=False)
    for row in table.rows[4:]:
        assert analysis._random_rival(grid, row, [], "gqa").row.key == f"random {row.ratio:g}"


def test_agreement_over_a_part_of_the_columns_is_a_hole(filled, table):
    import shutil

    table = dataclasses.replace(table, extras=("agreement",))
    assert value(analysis.build(table, filled), "gprune", "agreement").value > 50
    shutil.rmtree(next(filled.glob("runs/gqa/*/none-0-*")))
    assert value(analysis.build(table, filled), "gprune", "agreement").value is None


def changed_entries(results, pattern, change):
    for file in results.glob(f"runs/{pattern}/samples.jsonl"):
        entries = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        entries = [new for e in entries for new in change(e)]
        file.write_text("".join(json.dumps(e) + "\n" for e in entries), encoding="utf-8")


def test_questions_about_one_image_are_not_independent(filled, table):
    def paired(entry):
        return [{**entry, "image_id": f"i{entry['doc_id'] // 2}"}]

    before = value(analysis.build(table, filled), "l2_norm_only", "gqa").against["best"]
    changed_entries(filled, "gqa/*/*", paired)
    after = value(analysis.build(table, filled), "l2_norm_only", "gqa").against["best"]
    assert (before.test, after.test) == ("McNemar", "paired bootstrap")


def test_rows_that_answered_other_questions_are_not_tested(filled, table):
    changed_entries(filled, "gqa/*/gprune-*", lambda e: [{**e, "doc_id": e["doc_id"] + 1}])
    grid = analysis.build(table, filled)
    assert value(grid, "gprune", "gqa").against == {}
    assert value(grid, "gprune", "pope").against


def test_the_last_answer_of_a_sample_counts(filled, table):
    before = value(analysis.build(table, filled), "gprune", "gqa")
    changed_entries(filled, "gqa/*/gprune-*", lambda e: [{**e, "score": 0.0}, e])
    after = value(analysis.build(table, filled), "gprune", "gqa")
    assert (after.low, after.value) == (before.low, before.value) and not after.reason


def test_mme_is_its_perception_part(tmp_path):
    lines = []
    for doc in range(8):
        kind = "count" if doc < 4 else "code_reasoning"
        lines.append({"doc_id": doc, "answer": "yes", "error": None, "score": 100.0 * (doc < 4),
                      "image_id": f"i{doc // 2}", "question_id": f"{kind}/{doc // 2}"})  # fmt: skip
    (tmp_path / "samples.jsonl").write_text(
        "".join(json.dumps(e) + "\n" for e in lines), encoding="utf-8"
    )
    found = samples.load(tmp_path, "mme", 200.0)
    assert found.ids == (0, 1, 2, 3) and found.statistic.observed() == 200
    apart = dataclasses.replace(found, images=(0, 1, 2, 3), score=200.0)
    worse = dataclasses.replace(apart, scores=np.array([100.0, 100, 0, 100]), score=150.0)
    assert samples.compare([apart], [worse]).test == "paired bootstrap"  # no mean of right or wrong
    gqa = [dataclasses.replace(one, bench="gqa", score=one.scores.mean()) for one in (apart, worse)]
    assert samples.compare(gqa[:1], gqa[1:]).test == "McNemar"


def test_where_less_is_better_the_least_is_best(filled, table, monkeypatch):
    monkeypatch.setattr(analysis, "higher_is_better", lambda cell: False)
    grid = analysis.build(table, filled)
    assert value(grid, "random", "gqa").best and not value(grid, "gprune", "gqa").best
    assert analysis.NOT_FROM_RANDOM in value(grid, "gprune", "gqa").marks


def test_points_have_no_part_in_an_average_of_per_cent(tmp_path, table, monkeypatch):
    tools.fill(tmp_path, table)
    for file in tmp_path.glob("runs/gqa/*/*/result.json"):
        file.write_text(
            json.dumps({**json.loads(file.read_text(encoding="utf-8")), "score": 1500.0}),
            encoding="utf-8",
        )
    real = analysis.benches.for_engine

    def points(bench, *others):
        return {**real(bench, *others), **({"unit": "points"} if bench["name"] == "gqa" else {})}

    monkeypatch.setattr(analysis.benches, "for_engine", points)
    grid = analysis.build(table, tmp_path, statistics=False)
    both = [value(grid, "gprune", bench).value for bench in ("pope", "textvqa")]
    assert value(grid, "gprune", "gqa").value == 1500
    assert value(grid, "gprune", "average").value == pytest.approx(sum(both) / 2)


def test_what_is_not_better_than_random_is_marked(tmp_path, table):
    def alike(cell):
        return tools.right_wrong(0.5, seed=len(cell.row.key) + cell.config["seed"])

    tools.fill(tmp_path, table, alike)
    grid = analysis.build(table, tmp_path)
    marks = [m for v in grid.values.values() for m in v.marks]
    assert analysis.NOT_FROM_RANDOM in marks and analysis.NOT_FROM_BEST in marks
    notes = "\n".join(render.notes(grid, PLAIN))
    assert "not significantly better than random" in notes and "not distinguishable" in notes


def test_the_paper_stands_beside(filled, table):
    options = render.Options(paper=True)
    text = render.text(analysis.build(table, filled), options)
    assert "(64.37 " in text and "64.05§" in text and "63.87 in Tables 1 and 3" in text
    row = next(
        r for r in lines(render.csv_text(analysis.build(table, filled)))
        if r["row"] == "gprune 0.7" and r["column"] == "gqa"
    )  # fmt: skip
    assert float(row["difference"]) == pytest.approx(float(row["value"]) - 64.37, abs=1e-3)


def test_latex_has_booktabs_and_escapes(filled, table):
    text = render.latex(analysis.build(table, filled), PLAIN)
    assert text.count(r"\midrule") == 5 and r"\textbf{" in text and r"$\pm$" in text
    bold = {line.split(" & ")[0]: r"\textbf" in line for line in text.splitlines() if " & " in line}
    assert [name for name, is_bold in bold.items() if is_bold] == ["G-Prune"]
    body = text.split(r"\midrule")[1]
    assert "_" not in body and "±" not in text.split("% metric")[0]


def test_latex_escapes_what_stands_behind_marks_and_in_labels(filled, table):
    rows = tuple(
        dataclasses.replace(r, label=r"50 %_a & b\c {d} $e$ #f ~^") if r.name == "gprune" else r
        for r in table.rows
    )
    grid = analysis.build(dataclasses.replace(table, rows=rows), filled)
    marked = value(grid, "gprune", "textvqa")
    marked.marks = ["a", "†", "≈", "°"]  # the published value with its § stands behind them
    text = render.latex(grid, render.Options(paper=True))
    (line,) = [x for x in text.splitlines() if x.startswith("50")]
    assert line.startswith(
        r"50 \%\_a \& b\textbackslash{}c \{d\} \$e\$ \#f \textasciitilde{}\textasciicircum{} & 0.7"
    )
    assert r"$^{\mathrm{a},\dagger,\approx,\circ}$ (64.05\S{}" in line
    shown = [x for x in text.splitlines() if not x.startswith("%")]
    assert "".join(shown).isascii() and all(x.count("$") % 2 == x.count(r"\$") % 2 for x in shown)


@pytest.mark.slow
def test_latex_compiles(filled, table, tmp_path):
    import shutil

    there = shutil.which("pdflatex") and shutil.which("kpsewhich")
    if not there or subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True).returncode:
        pytest.skip("no LaTeX here (apt-get install texlive-latex-recommended): nothing compiled")
    grid = analysis.build(table, filled)
    for one in grid.values.values():
        one.marks = list(render.MEANING)
    body = render.latex(grid, render.Options(ci=True, paper=True))
    head = r"\documentclass{article}\usepackage{booktabs}\begin{document}"
    (tmp_path / "t.tex").write_text(head + "\n" + body + "\n" + r"\end{document}", encoding="utf-8")
    command_line = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "t.tex"]
    done = subprocess.run(
        command_line, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout[-600:]
    assert (tmp_path / "t.pdf").stat().st_size > 5000


def test_a_label_is_no_markup(filled, table):
    rows = (dataclasses.replace(table.rows[0], label="<b>x</b>"), *table.rows[1:])
    grid = analysis.build(dataclasses.replace(table, rows=rows), filled, statistics=False)
    text = render.html_page(grid, PLAIN)
    assert "<b>x</b>" not in text and "&lt;b&gt;x&lt;/b&gt;" in text


def test_the_foot_file_names_every_run(filled, table):
    foot = lines(render.provenance(analysis.build(table, filled, statistics=False)))
    assert len(foot) == len(table.cells())
    assert all(len(line["key"]) == 64 and line["torch"] == "2.12.1" for line in foot)


# --- cells that do not go together ---------------------------------------------------------------


def odd(change):
    def changed(results, table):
        cell = next(c for c in table.cells() if (c.row.name, c.bench) == ("gprune", "gqa"))
        folder = tools.put(results, cell, tools.by_method(cell))
        content = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        change(content)
        (folder / "result.json").write_text(json.dumps(content), encoding="utf-8")

    return changed


@pytest.mark.parametrize(
    ("mark", "change"),
    [
        ("!", lambda r: r.update(n_failed=1)),
        ("a", lambda r: r["identity"]["versions"].update(torch="2.13.0")),
        ("b", lambda r: r["identity"]["model"].update(dtype="float16")),
        ("c", lambda r: r["identity"]["data"].update(content="other")),
        ("d", lambda r: r["provenance"].update(code="other")),
        ("e", lambda r: r.update(metric="another")),
    ],
)
def test_an_odd_cell_is_marked_and_explained(filled, table, mark, change):
    clean = analysis.build(table, filled, statistics=False)
    assert mark not in clean.marks()
    odd(change)(filled, table)
    grid = analysis.build(table, filled, statistics=False)
    marked = [v for v in grid.values.values() if mark in v.marks and v.column in table.benches]
    assert [(v.row.name, v.column) for v in marked] == [("gprune", "gqa")]
    assert render.MEANING[mark] in "\n".join(render.notes(grid, PLAIN))


def test_no_two_marks_are_the_same_sign():
    others = [analysis.NOT_FROM_BEST, analysis.NOT_FROM_RANDOM, analysis.OTHER_COUNT,
              retained.OTHER_CONDITIONS, speed.OTHER_THAN_SCORES, speed.UNSETTLED]  # fmt: skip
    signs = [*lookup.MARKS, *others]
    assert len(signs) == len(set(signs)) == len(render.MEANING)
    page = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
    assert all(f"`{sign}`" in page for sign in signs)


def test_another_checkpoint_request_or_data_source_is_not_this_cell(filled, table):
    for change in (
        lambda r: r["identity"]["model"].update(checkpoint="other"),
        lambda r: r["identity"]["method"].update(threshold=0.6),
        lambda r: r["identity"]["data"].update(source="hub"),
        lambda r: r["identity"].update(batch_size=3),
    ):
        odd(change)(filled, table)
        grid = analysis.build(table, filled, statistics=False)
        assert value(grid, "gprune", "gqa").status == lookup.MISSING


def test_a_mean_carries_the_marks_of_what_it_is_a_mean_of(filled, table):
    odd(lambda r: r.update(metric="another", n_failed=1))(filled, table)
    grid = analysis.build(table, filled, statistics=False)
    assert value(grid, "gprune", "average").marks == ["!", "e", "†"]
    assert value(grid, "l2_norm_only", "average").marks == ["†"]
    assert value(grid, "gprune", "macs").marks == ["!"]  # the metric has no part in it


def test_a_system_message_does_not_hide_a_stored_cell(tmp_path):
    table = spec.load(TABLE, {"model.prompt.system": "Be brief."})
    tools.fill(tmp_path, table)
    assert {cell.status for cell in lookup.find(table, tmp_path)} == {lookup.DONE}
    assert {cell.status for cell in lookup.find(spec.load(TABLE), tmp_path)} == {lookup.MISSING}


# --- how compute is counted ----------------------------------------------------------------------


def without_counts(results, bench=None):
    """G-Prune's journals lose the token counts per layer; the runs' own totals stay."""
    for file in results.glob(f"runs/{bench or '*'}/*/gprune-*/samples.jsonl"):
        entries = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for entry in entries:
            entry["pruning"] = None
        file.write_text("".join(json.dumps(e) + "\n" for e in entries), encoding="utf-8")


def test_compute_is_counted_under_the_convention_of_the_column(filled):
    from vtprune.harness.cost.conventions import CONVENTIONS

    counted = {}
    for name in CONVENTIONS:
        table = spec.load(TABLE, cost=name)
        grid = analysis.build(table, filled, statistics=False)
        counted[name] = value(grid, "gprune", "macs").value
        assert name in "\n".join(render.notes(grid, PLAIN))
    assert counted["flops"] == 2 * counted["macs"]
    assert len({round(1e9 * c, 6) for c in counted.values()}) >= 5
    assert "GFLOPs" in render.text(analysis.build(spec.load(TABLE, cost="flops"), filled), PLAIN)


def test_sizes_are_read_without_torch_as_the_model_classes_have_them():
    from vtprune.harness.cost import architecture_of
    from vtprune.models.describe import describe, hf_config

    files = sorted((ROOT / "models" / "architectures").glob("*.json"))
    assert len(files) >= 10
    for file in files:
        assert cost._architecture(str(file)) == architecture_of(hf_config(describe(file))), file


@pytest.mark.parametrize("model", ["llava_next_8b", "llava15_7b", "qwen2_vl_7b"])
def test_compute_of_the_real_models_is_counted(tmp_path, model):
    table = spec.load("gprune_table2", {"model": model})
    tools.fill(tmp_path, table)
    spent = value(analysis.build(table, tmp_path, statistics=False), "gprune", "macs")
    assert spent.value > 0.1 and spent.marks == []


def test_what_no_run_of_a_real_model_can_fill_says_why(tmp_path):
    table = spec.load("gprune_table1_iso", {"method.K": 8})
    fastv = {f.wanted.row.ratio: f for f in lookup.find(table, tmp_path)
             if f.wanted.row.name == "fastv"}  # fmt: skip
    assert fastv[0.9].status == lookup.IMPOSSIBLE and "8 of 32 layers" in fastv[0.9].reason
    assert fastv[0.7].status == lookup.MISSING


def test_compute_counted_otherwise_is_marked_and_explained(filled, table):
    clean = analysis.build(table, filled, statistics=False)
    assert analysis.OTHER_COUNT not in clean.marks()
    without_counts(filled)
    grid = analysis.build(table, filled, statistics=False)
    odd_one = value(grid, "gprune", "macs")
    assert odd_one.marks == [analysis.OTHER_COUNT] and odd_one.reason == "counted under macs"
    assert value(grid, "l2_norm_only", "macs").marks == []
    assert render.MEANING[analysis.OTHER_COUNT] in "\n".join(render.notes(grid, PLAIN))
    asked = analysis.build(spec.load(TABLE, cost="macs"), filled, statistics=False)
    assert value(asked, "gprune", "macs").marks == []  # now it is what the column says


def test_the_selection_counts_where_the_convention_says_so(filled, table):
    cell = lookup.find(table, filled)[-4]
    assert cell.wanted.row.name == "gprune"

    def spent(convention):
        return cost.count(cell.wanted.config, cell.result, convention).tera

    before = {name: spent(name) for name in ("macs", "paper_gprune")}
    changed_entries(filled, "*/*/gprune-*", lambda e: [{**e, "macs": {"selection": 10**9}}])
    assert spent("macs") == pytest.approx(before["macs"] + 1e-3)
    assert spent("paper_gprune") == before["paper_gprune"]


def test_compute_of_two_conventions_is_never_averaged(filled, table):
    without_counts(filled, bench="gqa")
    grid = analysis.build(table, filled, statistics=False)
    mixed = value(grid, "gprune", "macs")
    assert mixed.value is None and "macs and paper_gprune" in mixed.reason
    assert render.number(mixed, "macs") == "?"
    assert "cannot be computed" in "\n".join(render.notes(grid, PLAIN))


def test_compute_of_another_convention_is_not_compared_with_the_papers(filled):
    def paper(cost):
        grid = analysis.build(spec.load(TABLE, cost=cost), filled, statistics=False)
        row = next(r for r in lines(render.csv_text(grid))
                   if r["row"] == "gprune 0.7" and r["column"] == "macs")  # fmt: skip
        notes = render.notes(grid, render.Options(paper=True))
        return row["paper"], any("not compared" in note for note in notes)

    assert paper("paper_gprune") == ("6.76", False)
    assert paper("flops") == ("", True)


def test_an_unknown_entry_of_a_table_is_one_line(monkeypatch):
    for content, said in (
        ({"colums": []}, "unknown entry 'colums'; did you mean 'columns'"),
        ({"cost": "flop"}, "unknown cost 'flop'; did you mean 'flops'"),
        ({"best": "row"}, "unknown best"),
    ):
        with pytest.raises(ConfigError, match=said):
            spec._check("mini_table1", content)
    with pytest.raises(ConfigError, match="unknown cost 'paper'"):
        command.parse([f"table={TABLE}", "show", "cost=paper"])


def test_samples_that_do_not_add_up_give_no_interval(filled, table):
    odd(lambda r: r.update(score=12.34))(filled, table)
    found = value(analysis.build(table, filled), "gprune", "gqa")
    assert found.low is None and "do not add up" in found.reason and not found.against
