"""The files of conf/: where they are searched, and what Hydra reads in them.

Hydra takes a config from the first folder of its search path that has it. Ours stands first; what
the command line or the user's own ``conf/`` adds comes behind it, and travels to the processes of
a sweep in the environment.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from vtprune import places
from vtprune.harness.request.errors import ConfigError

#: folders behind ours, joined as in PATH
VARIABLE = "VTPRUNE_CONFIG_PATH"
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class File:
    """One config file: ``package`` of its header, its defaults list and the rest of it."""

    path: Path
    package: str | None
    defaults: list[Any]
    content: dict[Any, Any]


def folders() -> list[Path]:
    """Config folders in the order in which they are searched."""
    more = os.environ.get(VARIABLE, "").split(os.pathsep)
    return [places.CONF, *(Path(name) for name in more if name)]


def add_folders(*new: Path) -> None:
    """Search ``new`` behind the folders known so far, here and in processes started from here."""
    known = folders()[1:]
    known += [path for path in map(Path.absolute, new) if path not in [places.CONF, *known]]
    os.environ[VARIABLE] = os.pathsep.join(str(path) for path in known)


@contextlib.contextmanager
def searching(*new: Path) -> Iterator[None]:
    """:func:`add_folders` for the length of a block."""
    before = os.environ.get(VARIABLE)
    add_folders(*new)
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


def find(name: str) -> File | None:
    """The config ``name`` (``bench/gqa``), None if no folder has it.

    A file anywhere is ``table//its/path.yaml``: its group, and where it lies.

    Raises:
        ConfigError: it cannot be read.
    """
    group, outside, rest = name.partition("//")
    paths = [folder / f"{name}.yaml" for folder in folders()]
    for path in [Path(f"/{rest}")] if outside and group else paths:
        if path.is_file():
            stat = path.stat()
            return _read(path, stat.st_mtime_ns, stat.st_size)
    return None


def choices(group: str) -> list[str]:
    """Names of a group's files in all folders."""
    return sorted({file.stem for folder in folders() for file in (folder / group).glob("*.yaml")})


@cache
def _read(path: Path, _changed: int, _size: int) -> File:
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, _Yaml)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold key: value lines, not a {type(content).__name__}")
    defaults = content.pop("defaults", [])
    if not isinstance(defaults, list):
        raise ConfigError(f"{path}: defaults must be a list, not a {type(defaults).__name__}")
    return File(path, _package(text), defaults, content)


def _package(text: str) -> str | None:
    """``X`` of the header line ``# @package X``, if the file begins with one."""
    for line in filter(None, map(str.strip, text.splitlines())):
        if not re.match(r"#\s*@", line):
            return None
        words = line.lstrip("#").split()
        if words[0] == "@package" and len(words) == 2:
            return words[1]
    return None


class _Yaml(_Loader):
    """YAML as Hydra reads it: 1e-3 is a number, a date is text, no key stands twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [k.value for k, _ in node.value if k.tag == "tag:yaml.org,2002:str"]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{name}' stands there twice", node.start_mark
                )
        return super().construct_mapping(node, deep=deep)


_Yaml.yaml_implicit_resolvers = {
    first: [(tag, found) for tag, found in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(_\d+)*\.[\d_]*|\d+(_\d+)*|\.\d+(_\d+)*)([eE][-+]?\d+)$"),
    list("-+0123456789."),
)
