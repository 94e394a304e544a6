"""Fingerprint of code: what it says, not how it is laid out, and without running it.

A module counts with its syntax tree, comments and docstrings left out, and with the modules of the
same package that it imports, wherever in the file the import stands. So a changed comment changes
nothing; a changed constant, default or helper function does. Modules that are imported by a name
made at run time, and data files, are not seen.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import importlib.util
import re
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from vtprune import places

ENTRY_POINT_GROUP = "visual_token_pruning.methods"
_SHIPPED = "vtprune"
_METHODS = f"{_SHIPPED}.methods"
#: bases from there are known by the versions in a cell's identity
_VERSIONED = {*sys.stdlib_module_names, _SHIPPED, "torch", "numpy", "transformers"}
_REGISTERED = re.compile(r"^@register\(\s*[\"']([^\"']+)[\"']", re.MULTILINE)
_SHARED = {Path(path).resolve() for path in [*site.getsitepackages(), sysconfig.get_path("stdlib")]}


@dataclass(frozen=True)
class Place:
    """Where a class stands: ``module`` as it is imported, ``name`` inside it."""

    module: str
    name: str

    @classmethod
    def of(cls, target: str) -> Place:
        """From ``package.module:Class`` or ``package.module.Class``."""
        module, colon, name = target.partition(":")
        if not colon:
            module, _, name = target.rpartition(".")
        return cls(module, name)

    @property
    def shipped(self) -> bool:
        return self.module.partition(".")[0] == _SHIPPED


def place(method: Mapping[str, Any]) -> Place | None:
    """Where the class of a config's ``method`` group stands; None for a name that nothing has."""
    if target := method.get("_target_"):
        return Place.of(str(target))
    return named(str(method.get("name")))


def named(name: str) -> Place | None:
    """Where the method of this name stands: one of ours, or an entry point's."""
    if name in (ours := _registered()):
        return Place(ours[name], "")
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name == name:
            return Place.of(point.value)
    return None


def of_class(where: Place) -> str:
    """Fingerprint of a class: its module, those of its bases outside, and what they use.

    Raises:
        LookupError: its source is not found.
        SyntaxError: it is no Python.
    """
    seen: dict[str, str] = {}
    for module in _with_bases(where):
        _close(module, seen)
    if not seen:
        raise LookupError(f"no source of {where.module}")
    return _digest(seen)


def of_method(method: Mapping[str, Any]) -> str | None:
    """Fingerprint of the code of a config's ``method`` group, parts of a composition included.

    The shared files of ``methods/`` count for classes from outside as well.
    """
    found = {}
    for entry in _parts(method):
        where = place(entry)
        if where is not None:
            found[f"{where.module}:{where.name}"] = of_class(where)
            if not where.shipped:
                found["shared"] = _shared()
    return _digest(found) if found else None


def _shared() -> str:
    """Fingerprint of the files of ``methods/`` that hold no method: kinds, schedules, picks."""
    methods = {module.rpartition(".")[2] for module in _registered().values()}
    files = [f for f in sorted((places.ROOT / "methods").glob("*.py")) if f.stem not in methods]
    return _digest({file.stem: _meaning(file) for file in files})


@cache
def of_runtime() -> str:
    """Fingerprint of what carries out a method's choice: ``models/``."""
    folder = places.ROOT / "models"
    files = sorted(folder.rglob("*.py"))
    return _digest({file.relative_to(folder).as_posix(): _meaning(file) for file in files})


def _parts(method: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The group itself, and the groups of the methods that it composes."""
    yield method
    for key in ("first", "then"):
        if isinstance(method.get(key), str):
            yield {"_target_" if ":" in method[key] else "name": method[key]}
    for part in method.get("parts") or () if isinstance(method.get("parts"), list) else ():
        if isinstance(part, Mapping):
            yield from _parts(part)


@cache
def _registered() -> dict[str, str]:
    """Module of each method that ships, found in the text: importing one would import torch."""
    found = {}
    for file in sorted((places.ROOT / "methods").glob("*.py")):
        for name in _REGISTERED.findall(file.read_text(encoding="utf-8")):
            found[name] = f"{_METHODS}.{file.stem}"
    return found


def _digest(parts: Mapping[str, str]) -> str:
    joined = "\0".join(f"{name}\0{text}" for name, text in sorted(parts.items()))
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------------ sources


def _close(module: str, seen: dict[str, str]) -> None:
    """Add a module and what it imports from its own package, each with its meaning."""
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = source(name)
        if name in seen or file is None:
            continue
        seen[name] = _meaning(file)
        waiting += [used for used in _imports(file, name) if _together(used, module)]


def _together(used: str, module: str) -> bool:
    """True if two modules are of one package, or of one folder of loose files."""
    top, own = used.partition(".")[0], module.partition(".")[0]
    if own == _SHIPPED:  # a method that ships, and the shared files beside it
        return used.startswith(f"{_METHODS}.")
    if top == own:
        return True
    if top in _VERSIONED:
        return False
    here, there = _root(own), _root(top)
    return here is not None and here == there and here not in _SHARED


@cache
def _root(top: str) -> Path | None:
    """The folder that holds a package or a loose file."""
    file = source(top)
    if file is not None:
        return (file.parent.parent if file.name == "__init__.py" else file.parent).resolve()
    spec = _spec(top)
    places_of = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places_of[0]).parent.resolve() if places_of else None


def source(module: str) -> Path | None:
    """The file of a module, without importing it or its packages; None if it has none."""
    top, *rest = module.split(".")
    if top == _SHIPPED:
        return _file([places.ROOT], rest) if rest else None
    spec = _spec(top)
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    return _file([Path(where) for where in spec.submodule_search_locations or ()], rest)


def _spec(top: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(top)
    except (ImportError, ValueError):  # e.g. __main__ has none
        return None


def _file(folders: Iterable[Path], rest: list[str]) -> Path | None:
    for folder in folders:
        base = folder.joinpath(*rest)
        for file in (base / "__init__.py", base.with_name(base.name + ".py")):
            if file.is_file():
                return file
    return None


def _tree(file: Path) -> ast.Module:
    stat = file.stat()
    return _parsed(file, stat.st_mtime_ns, stat.st_size)


@cache
def _parsed(file: Path, _changed: int, _size: int) -> ast.Module:
    return ast.parse(file.read_bytes(), filename=str(file))


def _meaning(file: Path) -> str:
    """The code of a file in one layout, without docstrings and comments."""
    stat = file.stat()
    return _unparsed(file, stat.st_mtime_ns, stat.st_size)


@cache
def _unparsed(file: Path, _changed: int, _size: int) -> str:
    tree = ast.parse(file.read_bytes(), filename=str(file))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _imports(file: Path, module: str) -> Iterator[str]:
    """Modules that a file imports, by full name."""
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, module, file)
            if base:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names)


def _base(node: ast.ImportFrom, module: str, file: Path) -> str:
    """What stands between ``from`` and ``import``, by full name."""
    if not node.level:
        return node.module or ""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for _ in range(node.level - 1):
        package = package.rpartition(".")[0]
    return ".".join(filter(None, (package, node.module)))


# -------------------------------------------------------------------------------------- bases


def _with_bases(where: Place) -> list[str]:
    """The module of a class and those of its bases in other packages, ours and torch's left out."""
    modules, waiting = [], [where]
    while waiting:
        at = waiting.pop()
        file = source(at.module)
        if file is None or at.module in modules:
            continue
        modules.append(at.module)
        waiting += [base for base in _bases(file, at) if base.module.partition(".")[0]
                    not in _VERSIONED]  # fmt: skip
    return modules


def _bases(file: Path, where: Place) -> Iterator[Place]:
    """Where the bases of a file's classes are imported from."""
    tree = _tree(file)
    known: dict[str, Place] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                known[alias.asname or alias.name.partition(".")[0]] = Place(alias.name, "")
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, where.module, file)
            for alias in node.names:
                known[alias.asname or alias.name] = Place(base, alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                first = ast.unparse(base).partition("[")[0].partition(".")[0]
                if first in known:
                    yield known[first]
