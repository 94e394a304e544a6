"""Where things lie: the one module that asks for its own file.

A checkout keeps its results beside its code. An installed package has no such place: its results
go below the working directory.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import sysconfig
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CONF = (PACKAGE / "conf").resolve()
#: what ``${repo:...}`` in conf/ is relative to: the checkout, or the installed package
ROOT = CONF.parent
CHECKOUT = ROOT if (ROOT / "run.py").is_file() else None
RESULTS = (CHECKOUT or Path.cwd()) / "results"
PUBLISHED = (PACKAGE / "published").resolve()
#: scripts of a checkout that do not bear the name of their command
_SCRIPTS = {
    "sync": "wandb_sync", "dashboard": "wandb_dashboard", "reference": "reference_figures",
    "costs": "cost_figures", "train": "train_embedded",
}  # fmt: skip
_NAMES = {script: name for name, script in _SCRIPTS.items()}
_WRITTEN = re.compile(r"python (run|scripts/(\w+))\.py")


def path(name: str) -> Path:
    """The place that ``${repo:name}`` stands for."""
    first, _, rest = name.partition("/")
    return RESULTS / rest if first == "results" else ROOT / name


def command(name: str = "run") -> str:
    """What a user types here for a command: ``python scripts/tables.py`` or ``vtprune tables``.

    In a checkout its scripts, which need no installation; from another folder with their whole
    path. An installed package has the command ``vtprune``; who typed that is told the same.
    """
    if CHECKOUT is None or Path(sys.argv[0]).name == "vtprune":
        return "vtprune" if name == "run" else f"vtprune {name}"
    file = Path("run.py") if name == "run" else Path("scripts") / f"{_SCRIPTS.get(name, name)}.py"
    return f"python {file if Path.cwd() == CHECKOUT else shlex.quote(str(CHECKOUT / file))}"


def typed(text: str) -> str:
    """Advice and help as it can be typed here: see :func:`command`.

    Args:
        text: names commands as they are in a checkout, ``python run.py`` or
            ``python scripts/tables.py``.
    """
    return _WRITTEN.sub(lambda m: command(_NAMES.get(m[2], m[2]) if m[2] else "run"), text)


def environment() -> dict[str, str]:
    """The environment of a child process that finds the modules which this process finds.

    Its PYTHONPATH holds what stands before the standard library on our path: the folder of the
    script that was started (with ``-m`` the working directory) and our own PYTHONPATH. So this very
    package is imported there, and nothing that is hidden here comes to light: the command
    ``vtprune`` adds no folder at all.
    """
    library, programs = sysconfig.get_path("stdlib"), sysconfig.get_path("scripts")
    ahead = []
    for entry in sys.path:
        if entry == library or entry.endswith(".zip"):
            break
        if Path(entry).is_dir() and entry != programs:
            ahead.append(str(Path(entry).absolute()))
    made = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return {**made, "PYTHONPATH": os.pathsep.join(dict.fromkeys(ahead))} if ahead else made


def module(name: str, *arguments: str) -> list[str]:
    """The command that runs a module of this package in a process of its own.

    ``-P`` leaves the working directory out of the path: with :func:`environment` the path is ours.
    """
    return [sys.executable, "-P", "-m", f"vtprune.{name}", *arguments]


def also_from_here() -> None:
    """Let modules of the working directory be found, behind everything that is installed.

    ``vtprune method._target_=my_file.MyMethod`` then works beside ``my_file.py``, and a folder
    called ``datasets`` or ``models`` hides nothing.
    """
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
