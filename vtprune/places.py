"""Where things lie: the one module that asks for its own file.

A checkout keeps its results beside its code. An installed package has no such place: its results
go below the working directory.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CONF = (PACKAGE / "conf").resolve()
#: what ``${repo:...}`` in conf/ is relative to: the checkout, or the installed package
ROOT = CONF.parent
CHECKOUT = ROOT if (ROOT / "run.py").is_file() else None
RESULTS = (CHECKOUT or Path.cwd()) / "results"
PUBLISHED = (PACKAGE / "published").resolve()


def path(name: str) -> Path:
    """The place that ``${repo:name}`` stands for."""
    first, _, rest = name.partition("/")
    return RESULTS / rest if first == "results" else ROOT / name


def environment() -> dict[str, str]:
    """The environment of a child process that must import this very package, wherever it starts."""
    known = os.environ.get("PYTHONPATH")
    found = [str(PACKAGE.parent), *([known] if known else [])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(found)}


def module(name: str, *arguments: str) -> list[str]:
    """The command that runs a module of this package in a process of its own."""
    return [sys.executable, "-m", f"vtprune.{name}", *arguments]
