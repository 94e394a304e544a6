"""Answers, labels and errors from elsewhere: shown as text everywhere, obeyed nowhere."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys

import pytest

from tests import command_tools, stored
from tests import table_tools as tools
from vtprune.harness.reporting.report import page, samples
from vtprune.harness.reporting.tables import analysis, escape, frame, render, spec
from vtprune.harness.request import terminal
from vtprune.harness.request.errors import HarnessError, one_line

CLEAR = "\x1b[2J\x1b]0;owned\x07"
EVIL = f"=HYPERLINK(\"http://x\")|<b>\n\\input{{/etc/passwd}}{CLEAR}\u202eexe"
PLAIN = render.Options(ci=True, agree=True)


def obeyed(text):
    """Signs that a terminal or an editor would obey."""
    return [sign for sign in text if sign not in "\n\t" and not sign.isprintable()]


# --- terminal ------------------------------------------------------------------------------------


def test_signs_that_a_terminal_obeys_are_written_out():
    assert terminal.visible("\x1b[31mred\x07\x9b1m\r\n") == "\\x1b[31mred\\x07\\x9b1m\r\n"
    assert terminal.visible("a\u202eb\u2028c") == "a\\u202eb\\u2028c"
    for text in ("naïve 中文 عربي †≈°", "tab\tand\nline", "👍🏽"):
        assert terminal.visible(text) == text
    assert terminal.visible_line("a\n  b\r\tc\x1b") == "a b c\\x1b"


def test_a_command_prints_them_by_name_whatever_it_prints(tmp_path, monkeypatch):
    with (tmp_path / "out").open("w", encoding="utf-8") as out:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", out)
        terminal.show_what_can_be_shown()
        terminal.show_what_can_be_shown()  # once is enough
        print(CLEAR, "中文")
        sys.stderr.writelines([CLEAR])
        assert sys.stdout.fileno() == out.fileno() and not sys.stdout.isatty()
        sys.stdout.flush()
    text = (tmp_path / "out").read_text(encoding="utf-8")
    assert text.count("\\x1b[2J\\x1b]0;owned\\x07") == 2 and "中文" in text and not obeyed(text)


def test_an_error_is_one_line_of_a_length_one_can_read():
    for error in (ValueError("x" * 10**6), HarnessError("y" * 10**6)):
        assert len(one_line(error)) <= 4000
    assert one_line(HarnessError("first\rsecond")) == "first"


def test_what_was_typed_is_not_obeyed_either():
    done = command_tools.run("run.py", f"method={CLEAR}", loaded=command_tools.CLI)
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    assert not obeyed(done.stderr + done.stdout) and done.stderr.count("\n") == 1


@pytest.fixture
def hostile(tmp_path):
    """A store from somebody else, with one cell that names things its own way."""
    folder = tmp_path / "runs/textvqa/embedded/gprune-0.9-abc"
    folder.mkdir(parents=True)
    counters = {"macs": {}, "macs_full": None, "visual_tokens": None, "visual_kept": None,
                "removal": None, "accuracy_pass": {"samples_per_s": None}}  # fmt: skip
    made = stored.result(model=EVIL, method="=1+1", metric=EVIL, counters=counters, score=-3.5)
    (folder / "result.json").write_text(json.dumps(made), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("form", [[], ["--csv"], ["--markdown"]])
def test_names_in_a_store_are_shown_as_text(hostile, form):
    line = ["scripts/tables.py", "--results", str(hostile), *form]
    done = command_tools.run(*line, loaded=command_tools.CLI)
    assert done.returncode == 0, done.stderr
    assert not obeyed(done.stdout + done.stderr) and "owned" in done.stdout
    if form == ["--markdown"]:
        assert "<b>" not in done.stdout and "\\|&lt;b>" in done.stdout


def test_no_field_of_the_list_of_cells_is_a_formula(hostile):
    (line,) = csv.DictReader(frame.csv_text(frame.read(hostile)).splitlines())
    assert line["model"].startswith("'=HYPERLINK") and line["method"] == "'=1+1"
    assert float(line["score"]) == -3.5


# --- files of a table ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A table whose title, labels, notes, keys and reasons are hostile."""
    folder = tmp_path_factory.mktemp("store")
    table = spec.load("mini_table2")
    tools.fill(folder, table)
    rows = tuple(
        dataclasses.replace(r, name=EVIL, label=EVIL) if r.name == "gprune" else r
        for r in table.rows
    )
    table = dataclasses.replace(table, rows=rows, title=EVIL, notes=(EVIL,))
    made = analysis.build(table, folder, statistics=False)
    next(iter(made.values.values())).reason = EVIL
    return made


@pytest.mark.parametrize("form", ["text", "markdown", "latex", "html_page", "csv_text"])
def test_no_form_of_a_table_holds_a_sign_that_is_obeyed(grid, form):
    make = getattr(render, form)
    text = make(grid) if form == "csv_text" else make(grid, PLAIN)
    assert not obeyed(text) and "owned" in text


def test_only_numbers_begin_a_field_with_a_sign_of_a_formula(grid):
    for text in (render.csv_text(grid), render.provenance(grid)):
        for line in csv.DictReader(text.splitlines()):
            for field in line.values():
                if field.startswith(("=", "+", "-", "@")):
                    float(field)
    assert escape.csv_field("-3.2") == "-3.2" and escape.csv_field(-3.2) == -3.2
    assert escape.csv_field("-3.2+cmd|'/C calc'!A0") == "'-3.2+cmd|'/C calc'!A0"
    assert escape.csv_field("\t=1") == "'=1" and escape.csv_field("@SUM(1)") == "'@SUM(1)"


def test_a_label_ends_no_cell_and_no_comment(grid):
    shown = render.markdown(grid, PLAIN)
    rows = [line for line in shown.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
    assert "<b>" not in shown
    tex = render.latex(grid, PLAIN)
    live = [line for line in tex.splitlines() if not line.startswith("%")]
    assert not any(line.startswith("\\input") or r"\input{" in line for line in live)
    assert any("input" in line for line in tex.splitlines() if line.startswith("%"))
    text = render.text(grid, PLAIN)
    assert len([line for line in text.splitlines() if "HYPERLINK" in line]) == 3  # title, row, note


def test_the_page_of_a_table_loads_and_runs_nothing(grid):
    text = render.html_page(grid, PLAIN)
    assert "default-src 'none'" in text and "script-src" not in text and "<script" not in text
    assert "<b>\n" not in text and "<b> " not in text and "&lt;b&gt;" in text


# --- report --------------------------------------------------------------------------------------


def test_the_report_runs_its_own_script_and_no_other():
    text = page.TEMPLATE.read_text(encoding="utf-8")
    assert "script-src '@SCRIPT@'" in text and "'unsafe-inline'" not in text.split("script-src")[1]
    own = page.script_hash(text)
    assert own.startswith("sha256-")
    changed = text.replace('"use strict";', '"use strict"; alert(1);')
    assert page.script_hash(changed) != own


def test_the_report_shows_no_megabytes_and_no_control_characters():
    long = samples.shortened("a" * 10**6)
    assert len(long) < 5000 and long.endswith("(996000 more signs)")
    assert samples.shortened(CLEAR) == "\\x1b[2J\\x1b]0;owned\\x07"
    assert samples.shortened(None) is None
    assert len(samples._reference(["x" * 10**6, "y"])) < 5000
