"""The same files under every locale, and a terminal without our signs stops no command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vtprune.harness.request import terminal

ROOT = Path(__file__).resolve().parent.parent
#: two rows of a benchmark whose prompts are Chinese; without its baseline, so with a dagger
SETTINGS = ["model=embedded", "data=mini", "bench.limit=2", "data.samples=8"]
RUN = [*SETTINGS, "bench=mmbench_cn", "method=random", "ratio=0.5", "method.ratio_mode=local"]
TABLE = """\
title: "Naïve café: 中文"
settings: {model: embedded, data: mini, method.ratio_mode: local}
columns: [mmbench_cn]
rows:
  - {name: baseline, label: Baseline, method: none}
  - {name: random, label: Random, method: random, ratio: [0.5], seed: 0}
"""
ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # else Python takes C for C.UTF-8


def latin_1(folder: Path) -> dict[str, str]:
    """The environment of a Latin-1 locale; where none can be made, of an ASCII one that prints it.

    ``localedef`` writes the locale into a folder of its own.
    """
    name = "en_US.ISO-8859-1"
    if shutil.which("localedef"):
        command = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(folder / name)]
        subprocess.run(command, capture_output=True, check=False)
        if (folder / name).exists():
            return {"LOCPATH": str(folder), "LC_ALL": name}
    return {"LC_ALL": "C", **ASCII, "PYTHONIOENCODING": "latin-1"}


LOCALES = {
    "Latin-1": latin_1,
    "ASCII": lambda folder: {"LC_ALL": "C", **ASCII, "PYTHONIOENCODING": "ascii"},
    "C": lambda folder: {"LC_ALL": "C"},
}


@pytest.fixture(params=LOCALES)
def call(request, tmp_path):
    """Calls a script of the checkout under a locale, beside a user's table with foreign signs."""
    (tmp_path / "conf" / "table").mkdir(parents=True)
    (tmp_path / "conf" / "table" / "foreign.yaml").write_text(TABLE, encoding="utf-8")
    odd = ("LC_", "LANG", "PYTHONUTF8", "PYTHONIOENCODING")
    plain = {k: v for k, v in os.environ.items() if not k.startswith(odd)}
    environment = {**plain, **LOCALES[request.param](tmp_path)}

    def go(script, *arguments):
        done = subprocess.run(
            [sys.executable, ROOT / script, *arguments], cwd=tmp_path, env=environment,
            capture_output=True, timeout=300, check=False,
        )  # fmt: skip
        out, told = done.stdout.decode("latin-1"), done.stderr.decode("latin-1")
        assert (done.returncode, told) == (0, ""), f"{script}: {out}{told}"
        return out

    return go


@pytest.mark.slow
def test_run_list_table_export_and_report_work_under_any_locale(call, tmp_path):
    where = f"results={tmp_path}"
    shown = call("run.py", *RUN, f"paths.{where}")
    assert "no unpruned run with the same settings" in shown
    assert "mmbench_cn" in call("scripts/tables.py", "--results", str(tmp_path))
    assert "embedded,random,0.5" in call("scripts/tables.py", "--csv", "--results", str(tmp_path))
    table = ["table=foreign", *SETTINGS, where]
    assert "MMB-CN" in call("scripts/tables.py", *table, "show")
    call("scripts/tables.py", *table, "export")
    call("scripts/report.py", *table)
    (journal,) = tmp_path.glob("runs/mmbench_cn/*/*/samples.jsonl")
    assert "请直接使用" in journal.read_text(encoding="utf-8")
    (page,) = tmp_path.glob("reports/*.html")
    exported = {f.suffix: f.read_text(encoding="utf-8") for f in tmp_path.glob("tables/foreign*")}
    assert set(exported) == {".csv", ".md", ".tex", ".html"}
    for text in (exported[".md"], exported[".html"], page.read_text(encoding="utf-8")):
        assert "Naïve café: 中文" in text and "†" in text
    for file in journal.parent.glob("*.*"):
        file.read_text(encoding="utf-8")


def test_a_sign_the_terminal_lacks_is_a_question_mark_there(tmp_path, monkeypatch):
    with (tmp_path / "out").open("w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(UnicodeEncodeError):
            print("50.00†", flush=True)
        terminal.show_what_can_be_shown()
        print("50.00†", flush=True)
    assert (tmp_path / "out").read_text(encoding="ascii") == "50.00?\n"
