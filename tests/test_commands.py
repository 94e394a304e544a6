"""The command `vtprune`: its verbs, what they import, the user's own conf/, advice to type."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import command_tools
from vtprune import commands, places
from vtprune.harness.request import files
from vtprune.harness.request.errors import HarnessError

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
SPY = "import atexit, sys\natexit.register(lambda: print('TORCH' if 'torch' in sys.modules else " \
      "'NO-TORCH'))\nfrom vtprune.commands import main\nsys.exit(main())"  # fmt: skip


def run(*command, cwd=ROOT, **more):
    environment = {**ENVIRONMENT, **more}
    return command_tools.run(
        *map(str, command), cwd=cwd, env=environment, loaded=command_tools.CLI
    )


def sources(*folders):
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    return [(file, ast.parse(file.read_text(encoding="utf-8"))) for file in files]


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_verb_has_help_without_torch_and_leaves_no_trace(name, tmp_path):
    done = run("-c", SPY, name, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *told, torch = done.stdout.strip().splitlines()
    assert torch == "NO-TORCH" and len(told) > 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_verb_is_a_script_and_is_listed_in_the_help(name):
    file = ROOT / places.command(name).removeprefix("python ").removeprefix(f"{ROOT}/")
    text = file.read_text(encoding="utf-8")
    assert f'main(["{name}", *sys.argv[1:]])' in text and len(text.splitlines()) <= 12
    assert commands.COMMANDS[name].does in commands.listing()


def test_scripts_hold_no_logic():
    logic = (ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.With, ast.Try)
    for file, tree in sources("scripts"):
        assert not any(isinstance(node, logic) for node in ast.walk(tree)), file


def test_a_script_and_its_verb_say_the_same(tmp_path):
    script = run("scripts/tables.py", "--results", tmp_path)
    verb = run("-m", "vtprune", "tables", "--results", tmp_path)
    assert script.stderr == verb.stderr == f"no finished cells below {tmp_path}/runs\n"
    assert script.returncode == verb.returncode == 1


def test_a_wrong_verb_names_the_nearest(capsys):
    assert commands.main(["tabels"]) == 2
    assert capsys.readouterr().err == "error: unknown command 'tabels'; did you mean 'tables'?\n"


def test_a_module_run_by_name_ends_with_the_status_of_the_command():
    done = run("-m", "vtprune.harness.cli", "method=gprun")
    assert done.returncode == 2 and "did you mean 'gprune'?" in done.stderr


def test_every_module_with_a_main_hands_its_status_on():
    """A module with `main` and without these lines would do nothing, and end with 0."""
    for file, tree in sources("harness", "training", "models", "methods"):
        if not any(isinstance(n, ast.FunctionDef) and n.name == "main" for n in tree.body):
            continue
        last = ast.unparse(tree.body[-1])
        assert last.startswith("if __name__ == '__main__':") and "sys.exit(" in last, file


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(places, "CHECKOUT", None)


def test_advice_is_what_can_be_typed_in_a_checkout(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert places.typed("run: python run.py task=time") == "run: python run.py task=time"
    assert places.command("sync") == "python scripts/wandb_sync.py"
    monkeypatch.chdir(tmp_path)
    assert places.typed("python scripts/tables.py") == f"python {ROOT}/scripts/tables.py"
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/vtprune"])
    assert places.typed("python scripts/tables.py") == "vtprune tables"


def test_advice_is_what_can_be_typed_with_an_installed_package(installed):
    text = "`python run.py --help` or python scripts/wandb_sync.py --online"
    assert places.typed(text) == "`vtprune --help` or vtprune sync --online"
    error = HarnessError("use: python scripts/submit.py (it needs no accounting)")
    assert str(error) == "use: vtprune submit (it needs no accounting)"


def test_no_printed_text_names_a_script_that_an_installed_package_does_not_have():
    """Such text goes through `places`: as a HarnessError, a docstring of a command, or `typed`."""
    shown = re.compile(r"python (run|scripts/\w+)\.py")
    told = []
    for file, tree in sources("harness", "training", "models", "methods"):
        if file.name in ("gallery.py", "method_files.py"):  # they make pages of the repository
            continue
        passed = set()
        for node in ast.walk(tree):
            name = node.func if isinstance(node, ast.Call) else None
            name = getattr(name, "attr", getattr(name, "id", ""))
            body = getattr(node, "body", None)
            if name == "typed" or name.endswith("Error"):
                passed |= set(ast.walk(node))
            elif isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                passed.add(body[0].value)
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and shown.search(text) and node not in passed:
                told.append(f"{file.relative_to(ROOT)}:{node.lineno}: {text.strip()}")
    assert not told


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A working directory with a conf/ of its own."""
    for name, text in {
        "method/mine.yaml": "defaults: [gprune, _self_]\nthreshold: 0.7\n",
        "method/gprune.yaml": "name: random\n",
        "bench/mytext.yaml": "defaults: [textvqa, _self_]\nname: mytext\n",
        "table/mytable.yaml": "defaults: [mini_table1, _self_]\ntitle: Mine\n",
    }.items():
        file = tmp_path / "conf" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    monkeypatch.delenv(files.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("given", [[], ["--config-dir", "{}/conf"], ["--config-dir={}/conf"]])
def test_own_conf_is_found_beside_the_working_directory_or_by_config_dir(mine, tmp_path, given):
    elsewhere = tmp_path / "empty"
    elsewhere.mkdir()
    given = [part.format(mine) for part in given]
    done = run("-m", "vtprune", *given, "method=mine", "bench=mytext", "ratio=0.5", "--cfg", "job",
               cwd=elsewhere if given else mine)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "threshold: 0.7" in done.stdout and "name: mytext" in done.stdout


def test_a_table_of_ones_own_is_found_by_the_commands_about_tables(mine, capsys):
    assert commands.main(["tables", "table=mytable", "status", f"results={mine}"]) == 0
    assert capsys.readouterr().out.startswith("Mine\n")
    assert files.VARIABLE not in os.environ


def test_a_wrong_name_lists_the_shipped_and_the_own(mine, capsys):
    assert commands.main(["method=mime", "ratio=0.5"]) == 2
    line = capsys.readouterr().err
    assert "did you mean 'mine'?" in line and "vispruner" in line and line.count("\n") == 1


def test_an_own_file_with_a_shipped_name_is_not_read_and_this_is_said(mine, capsys):
    assert commands.main(["method=gprune", "ratio=2"]) == 2
    note, error = capsys.readouterr().err.splitlines()
    assert note.startswith(f"note: {mine}/conf/method/gprune.yaml is not read")
    assert error.startswith("error: ratio must be")


def test_a_config_folder_that_is_not_there_is_refused(capsys, tmp_path):
    for given in (["--config-dir", str(tmp_path / "no")], ["--config-dir"]):
        assert commands.main([*given, "method=gprune"][: 2 + len(given)]) == 2
        assert "no such folder" in capsys.readouterr().err


def test_a_sweep_hands_the_folders_on_to_its_processes(mine):
    with files.searching(mine / "conf"):
        assert places.environment()[files.VARIABLE] == str(mine / "conf")


def test_a_reader_that_stops_early_ends_a_command_quietly():
    line = f"{sys.executable} -m vtprune methods | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=ENVIRONMENT, text=True,
                          encoding="utf-8", capture_output=True, check=False)  # fmt: skip
    assert done.stderr == "" and done.returncode in (0, 128 + 13)
    assert len(done.stdout.splitlines()) == 1
