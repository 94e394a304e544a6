"""Each room imports what stands below it and nothing above; no module goes round in a circle."""

from __future__ import annotations

import ast
import re
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: from the ground up; a room may import its own modules and those of the rooms before it
ROOMS = (
    "places", "methods", "models", "harness.request", "harness.store", "harness.cost",
    "harness.evaluation", "training", "harness.cell", "harness.sweep", "harness.reporting",
    "commands", "harness.cli",
)  # fmt: skip
#: packages that a room must not load, whatever it is asked (inside functions it may)
HEAVY = {"torch", "transformers", "lmms_eval", "vlmeval", "wandb"}
LIGHT = ("places", "commands", "harness.request", "harness.store", "harness.sweep", "harness.cli")


def tracked(*patterns: str) -> list[Path]:
    command = ["git", "ls-files", "-co", "--exclude-standard", *patterns]
    listed = subprocess.check_output(command, cwd=ROOT, text=True, encoding="utf-8")
    return [ROOT / name for name in listed.splitlines() if (ROOT / name).is_file()]


def module(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module(f): f for f in tracked("harness/*.py", "models/*.py", "methods/*.py")}
FILES |= {module(f): f for f in tracked("training/*.py")}
FILES = {n: f for n, f in FILES.items() if n != "harness"}  # the map alone
FILES |= {name: ROOT / "vtprune" / f"{name}.py" for name in ("places", "commands")}


def imports(name: str, text: str | None = None) -> dict[str, list[str]]:
    """Modules of ours that a module imports, anywhere in it, with the names taken from each."""
    tree = ast.parse(FILES[name].read_text(encoding="utf-8") if text is None else text)
    found: dict[str, list[str]] = {}
    for node in ast.walk(tree):  # before the search, which queues a body ahead of its `if`
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] != "vtprune":
            continue
        base = (node.module or "").removeprefix("vtprune").lstrip(".")
        for alias in node.names:
            full = f"{base}.{alias.name}".lstrip(".")
            there = full if full in FILES else base
            found.setdefault(there, []).append("" if there == full else alias.name)
    return {there: names for there, names in found.items() if there}


def room(name: str) -> str:
    return next(r for r in reversed(ROOMS) if name == r or name.startswith(f"{r}."))


def wrong(name: str, text: str | None = None) -> list[str]:
    """What a module imports from a room above its own, or by a private name from another room."""
    here, told = room(name), []
    for there, names in imports(name, text).items():
        if ROOMS.index(room(there)) > ROOMS.index(here):
            told.append(f"{name} imports {there}, which stands above it")
        private = [n for n in names if n.startswith("_")]
        if private and room(there) != here:
            told.append(f"{name} takes {', '.join(private)} out of {there}")
    return told


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_room_knows_only_what_stands_below_it(name):
    assert not wrong(name)


def test_an_import_of_an_upper_room_inside_a_function_is_seen():
    text = "def f():\n    from vtprune.harness.reporting.tables import frame\n"
    assert wrong("harness.store.cell", text) == [
        "harness.store.cell imports harness.reporting.tables.frame, which stands above it"
    ]
    text = "from vtprune.models.load import _helper\n"
    assert wrong("harness.cell.run", text) == [
        "harness.cell.run takes _helper out of models.load"
    ]  # fmt: skip


def test_no_import_goes_round_in_a_circle():
    TopologicalSorter({name: imports(name) for name in FILES}).prepare()  # raises CycleError


def test_harness_holds_rooms_a_command_line_and_a_map():
    inside = {f.relative_to(ROOT / "harness").parts[0] for f in tracked("harness/*")}
    rooms = {r.partition(".")[2] for r in ROOMS if r.startswith("harness.")} - {"cli"}
    assert inside == {*rooms, "__init__.py", "cli.py"}


def test_the_map_of_the_house_names_every_room():
    text = (ROOT / "harness" / "__init__.py").read_text(encoding="utf-8")
    named = re.findall(r"^    (\w+)/", text, re.M)
    assert named == [r.partition(".")[2] for r in reversed(ROOMS) if r.count(".")][1:]


@pytest.mark.parametrize("name", [n for n in FILES if room(n) in LIGHT])
def test_light_rooms_import_nothing_heavy_at_their_top(name):
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    tops = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    names = {a.name.split(".")[0] for n in tops if isinstance(n, ast.Import) for a in n.names}
    names |= {(n.module or "").split(".")[0] for n in tops if isinstance(n, ast.ImportFrom)}
    assert not names & HEAVY


_OURS = "(?:harness|methods|models|training)"
BARE = re.compile(rf"\bfrom {_OURS}[\w.]* import |(?:^|[\"';`(]) *import {_OURS}\b|-m {_OURS}\b")


@pytest.mark.parametrize("folder", ["*.py", "*.md", "*.yaml", "*.toml", "*.ipynb", "*.sh"])
def test_nothing_is_imported_under_a_second_name(folder):
    """`import harness` beside `import vtprune.harness` would be two modules with two states."""
    told = []
    for file in tracked(folder):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if BARE.search(line) and file != Path(__file__):
                told.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not told
