"""Her method in a table: rows of any class, by the table's file or by the command line."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from tests import command_tools
from vtprune.harness.reporting.tables import asked, command, spec
from vtprune.harness.request import known, words
from vtprune.harness.request.errors import ConfigError

OWN = '''
from dataclasses import dataclass

from vtprune.methods import TokenMethod


@dataclass(frozen=True, kw_only=True)
class Mine(TokenMethod):
    """Keeps long tokens."""

    power: float = 1.0

    def score(self, view):
        return view.features.norm(dim=-1) ** self.power

    def cost(self, shape):
        return 0
'''


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    (tmp_path / "her_file.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("her_file", None)


# ------------------------------------------------------------------------- words for Hydra


@pytest.mark.parametrize(("given", "made"), [
    (["method=a.b:C", "method.x=1", "ratio=0.5"],
     ["method=custom", "method._target_=a.b:C", "++method.x=1", "ratio=0.5"]),
    (["method=a.b.C"], ["method=custom", "method._target_=a.b.C"]),
    (["method._target_=a.b.C", "+method.x=1"], ["method=custom", "method._target_=a.b.C",
                                               "+method.x=1"]),
    (["method=custom", "method._target_=a.B", "method.x=1"],
     ["method=custom", "method._target_=a.B", "++method.x=1"]),
    (["method=gprune", "method.threshold=1"], ["method=gprune", "method.threshold=1"]),
    (["method=gprune,fastv"], ["method=gprune,fastv"]),
    (["method=gprun"], ["method=gprun"]),
])  # fmt: skip
def test_a_class_is_a_method_and_its_options_need_no_plus(given, made):
    assert words.own_method(given) == made


@pytest.mark.parametrize(("given", "made"), [
    (["table=x"], ["-m", "hydra/sweeper=table", "hydra.sweeper.table=x"]),
    (["-m", "table=x", "model=m"],
     ["-m", "hydra/sweeper=table", "hydra.sweeper.table=x", "model=m"]),
    (["-m", "experiment=controls", "table=x"],
     ["-m", "experiment=controls", "hydra.sweeper.table=x"]),
    (["-m", "experiment=e", "add=a:B"], ["-m", "experiment=e", "hydra.sweeper.add=a:B"]),
    (["table=/a b/c.yaml"], ["-m", "hydra/sweeper=table", "hydra.sweeper.table='/a b/c.yaml'"]),
    (["ratio=0.5"], ["ratio=0.5"]),
])  # fmt: skip
def test_a_table_needs_no_experiment(given, made):
    assert words.of_a_table(given) == made


def test_rows_without_a_table_are_refused():
    with pytest.raises(ConfigError, match="add= goes with a table"):
        words.of_a_table(["-m", "add=a:B"])


@pytest.mark.parametrize("text", ["a b", "it's", "a,b(c=[1],d='x')", "\\'", "é~#", "tail\\"])
def test_a_quoted_text_comes_back_from_hydra(text):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (found,) = OverridesParser.create().parse_overrides([f"x={words.quoted(text)}"])
    assert found.value() == text


# ------------------------------------------------------------------------------- additions


def test_entries_have_options_and_a_label():
    text = "a.b:C, a.b:D(power=0.5, label=Ours two, layers=[1, 2], seed=[0,1]),divprune(ratio=0.9)"
    one, two, three = asked.additions(text)
    assert (one.method, one.label, one.options) == ("a.b:C", "C", {})
    assert (two.label, two.options, two.seed) == (
        "Ours two", {"power": 0.5, "layers": [1, 2]}, [0, 1]
    )  # fmt: skip
    assert (three.method, three.ratio) == ("divprune", 0.9)


@pytest.mark.parametrize(("text", "said"), [
    ("divprun", "did you mean 'divprune'"),
    ("a.b:C(power)", "options are name=value"),
    ("a b", "cannot read 'a b'"),
    ("fastv, fastv", "two rows are called"),
    ("her_file:Mine(powr=2)", "did you mean 'power'"),
    ("her_file:Min", "did you mean 'Mine'"),
    ("gprune(threshhold=2, label=X)", "did you mean 'method.threshold'"),
])  # fmt: skip
def test_an_entry_that_cannot_be_is_one_line(folder, text, said):
    with pytest.raises(ConfigError, match=said):
        asked.load({"table": "mini_table1", "add": text}).cells()


def test_her_rows_stand_below_the_others_at_every_ratio(folder):
    table = asked.load({"table": "mini_table1", "add": "her_file:Mine(power=2,label=Ours)"})
    before = spec.load("mini_table1")
    assert table.rows[: len(before.rows)] == before.rows
    new = table.rows[len(before.rows) :]
    assert [(r.label, r.ratio, r.ours) for r in new] == [("Ours", r, True) for r in (0.5, 0.7, 0.9)]
    cell = next(c for c in table.cells() if c.row == new[0])
    assert cell.asked["method"]["power"] == 2 and cell.asked["method"]["code"]
    assert cell.asked["method"]["ratio_mode"] == "local", "a setting of the table, as for others"


def test_a_table_anywhere_is_a_table(folder):
    file = folder / "a b=c" / "mine.yaml"
    file.parent.mkdir()
    content = {
        "defaults": ["mini_table1", "_self_"], "title": "Mine", "columns": ["textvqa"],
        "rows": [{"name": "base", "method": "none"},
                 {"name": "mine", "method": "her_file:Mine", "ratio": 0.9,
                  "options": {"method.power": 0.5}}],
    }  # fmt: skip
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    table = asked.load({"table": str(file)})
    assert (table.name, [r.ours for r in table.rows]) == ("mine", [False, True])
    assert table.settings["model"] == "embedded", "of the table it builds on"
    with pytest.raises(ConfigError, match="there is no such file"):
        asked.load({"table": str(folder / "other.yaml")})


def test_every_command_takes_the_table_as_its_first_word(folder):
    (folder / "table").mkdir()
    (folder / "table" / "mine.yaml").write_text("defaults: [mini_table1]\n", encoding="utf-8")
    with known.searching(folder):
        request = command.parse(["mine", "show", f"results={folder}"])
        assert (request.table.name, request.verb) == ("mine", "show")
    with pytest.raises(ConfigError, match="unknown table 'mini_tabl1'; did you mean 'mini_table1'"):
        command.parse(["mini_tabl1", "show"])
    with pytest.raises(ConfigError, match="status what"):
        command.parse(["status"])


def test_the_plan_is_one_line_and_on_request_every_cell(folder):
    given = ["table=mini_table1", "add=her_file:Mine(label=Ours)", f"results={folder}"]
    short = command.plan(command.parse([*given, "plan"]))
    lines = [line for line in short.splitlines() if line.startswith("python run.py")]
    assert len(lines) == 2, "one for the scores, one for the speed"
    assert "add=her_file:Mine(label=Ours)" in shlex.split(lines[0])
    whole = command.plan(command.parse([*given, "plan", "all"]))
    own = [line for line in whole.splitlines() if "method=her_file:Mine" in line]
    assert len(own) == 3 * 8 + 3


@pytest.mark.slow
def test_a_table_with_her_rows_is_filled_and_shown(folder):
    small = ["bench.limit=2", "data.samples=4"]
    file = folder / "mine.yaml"
    content = {
        "defaults": ["mini_table1", "_self_"], "columns": ["textvqa", "pope"], "extras": [],
        "rows": [{"name": "base", "method": "none"},
                 {"name": "random", "method": "random", "ratio": [0.5, 0.9]}],
    }  # fmt: skip
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(folder)}
    words_ = [f"table={file}", "add=her_file:Mine(power=0.5, label=Ours)", *small]
    done = command_tools.run(
        "run.py", *words_, f"paths.results={folder}", "progress=false", env=env
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("her_file:Mine") >= 2
    shown = command_tools.run(
        "scripts/tables.py", *words_, f"results={folder}", "show", env=env
    )
    ours = [line for line in shown.stdout.splitlines() if line.split()[:1] == ["Ours"]]
    assert len(ours) == 2 and "·" not in "".join(ours), shown.stdout + shown.stderr
    command_tools.run("scripts/tables.py", *words_, f"results={folder}", "export", env=env)
    assert {f.name for f in (folder / "tables").iterdir()} >= {"mine_ours.csv", "mine_ours.tex"}
