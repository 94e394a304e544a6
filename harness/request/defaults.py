"""Hydra's defaults lists, in plain data: which files a config is made of, in which order, merged.

The rules are those of Hydra 1.3 (https://hydra.cc/docs/advanced/defaults_list): a list is worked
off from its end, so that an ``override`` is known before what it overrides; a file stands where its
``_self_`` does, last without one; mappings merge, lists and values replace. Hydra's own ``compose``
takes 0.1 s a config and a table has hundreds; ``tests/test_composer_parity.py`` holds the two
together. Groups below ``hydra/`` are Hydra's own and left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vtprune.harness.request import files
from vtprune.harness.request.errors import ConfigError, unknown

MISSING = "???"
_SELF = "_self_"
_GLOBAL = "_global_"
_NODE = re.compile(r"\$\{[^:{}]+\}")  # a reference to another entry, which may be a mapping


@dataclass(frozen=True)
class Composed:
    """What came out: plain data, and the choice of every group on the way."""

    config: dict[Any, Any]
    choices: dict[str, str | None]


def compose(name: str, chosen: Mapping[str, str | None] | None = None, *, strict: bool = True
            ) -> Composed:  # fmt: skip
    """The config ``name`` with all that its defaults lists name.

    Args:
        name: a file of the search path, ``config`` or, in its package, ``bench/gqa``.
        chosen: choices of groups that win over those of the files.
        strict: refuse choices and overrides of groups that no defaults list names.

    Raises:
        ConfigError: a file that does not exist, or a defaults list that Hydra would refuse.
    """
    tree = _Tree(dict(chosen or {}))
    placed = tree.walk(_Entry("file", name), primary=True)
    if strict:
        tree.check_used()
    seen: set[str] = set()
    merged: dict[Any, Any] = {}
    for part in placed:
        if part.key in seen:
            raise ConfigError(f"{part.file.path}: {part.key} appears twice in the defaults lists")
        if part.key is not None:
            seen.add(part.key)
        merge(merged, _embed(part.file.content, part.package), str(part.file.path))
    merged.pop("hydra", None)
    return Composed(merged, tree.choices)


def merge(into: dict[Any, Any], other: Mapping[Any, Any], where: str = "") -> None:
    """Merge as OmegaConf does: mappings entry by entry; lists and values replace; ``???`` waits.

    Raises:
        ConfigError: a list meets a mapping, or a reference a mapping.
    """
    for key, value in other.items():
        old = into.get(key)
        if isinstance(value, Mapping) and isinstance(old, dict):
            merge(old, value, where)
        elif {list, dict} == {type(old), type(value)} or (
            isinstance(value, dict) and isinstance(old, str) and _NODE.fullmatch(old)
        ):
            raise ConfigError(f"{where}: '{key}' is a {type(value).__name__} here and was another "
                              "kind of thing before; the two cannot be merged")  # fmt: skip
        elif value != MISSING or key not in into:
            into[key] = copy(value)


def copy(value: Any) -> Any:
    """A copy of plain data; several times as fast as ``copy.deepcopy``."""
    if isinstance(value, Mapping):
        return {k: copy(v) for k, v in value.items()}
    return [copy(v) for v in value] if isinstance(value, list) else value


def _embed(content: dict[Any, Any], package: str) -> dict[Any, Any]:
    for name in reversed(package.split(".") if package else []):
        content = {name: content}
    return content


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


@dataclass(frozen=True)
class _Placed:
    """A file in its place of the final order; ``key`` of the group that chose it, if one did."""

    file: files.File
    package: str
    key: str | None = None


@dataclass(frozen=True)
class _Entry:
    """One entry of a defaults list: ``kind`` is self, file or group; ``path`` a file or a group."""

    kind: str
    path: str
    choice: str | list[str] | None = None
    package: str | None = None
    optional: bool = False
    override: bool = False
    base: str = ""  # group of the file it stands in
    outer: str = ""  # package of that file

    @property
    def group(self) -> str:
        path = self.path if self.kind == "group" else _cut(self.path)[0]
        if self.path.startswith("/"):
            return path.removeprefix("/")
        return "/".join(filter(None, (self.base, path)))

    @property
    def name(self) -> str | None:
        """The config it means, as the search path has it; None for no choice."""
        if self.kind == "file":
            last = _cut(self.path)[1]
            return "/".join(filter(None, (self.group, last)))
        return None if self.choice is None else f"{self.group}/{self.choice}"

    @property
    def reference(self) -> bool:
        return _is_reference(self.path if self.kind == "file" else self.choice)

    @property
    def key(self) -> str:
        """What the group is called in an override: its path, with a package that is not usual."""
        package = self.final(None)
        usual = self.group.replace("/", ".")
        return self.group if package == usual else f"{self.group}@{package or _GLOBAL}"

    def final(self, header: str | None) -> str:
        """The package its content goes to; ``header`` is that of the file."""
        package = self.package if self.package is not None else header
        if package is None:
            path = self.path.removeprefix("/")
            package = (path if self.kind == "group" else _cut(path)[0]).replace("/", ".")
        whole = ".".join(filter(None, (self.outer, package)))
        return whole.rpartition(_GLOBAL)[2].removeprefix(".") if _GLOBAL in whole else whole

    def below(self, parent: _Entry, package: str) -> _Entry:
        """The entry as it stands in the list of ``parent``, whose content goes to ``package``."""
        made = replace(self, base=parent.group, outer=package)
        if made.package and "_group_" in made.package:
            own = made.package.replace("_group_", made.group.replace("/", "."))
            made = replace(made, package=f"{_GLOBAL}.{own}")
        return made


def _cut(path: str) -> tuple[str, str]:
    """Group and name of a config file; a file anywhere is ``table//its/path.yaml``."""
    group, outside, rest = path.partition("//")
    if outside:
        return group, f"/{rest}"
    group, _, name = path.rpartition("/")
    return group, name


@dataclass
class _Tree:
    """A walk over defaults lists; ``overrides`` are found on the way, those given first."""

    overrides: dict[str, str | None]
    used: set[str] = field(default_factory=set)
    said_in: dict[str, str] = field(default_factory=dict)  # override -> file
    choices: dict[str, Any] = field(default_factory=dict)
    open: list[Path] = field(default_factory=list)  # the files we are inside of

    def walk(self, entry: _Entry, primary: bool = False, late: bool = False) -> list[_Placed]:
        """The files that ``entry`` stands for, in the order in which they are merged."""
        if entry.kind == "group":
            self._choose(entry)
        if entry.name is None:
            return []
        file = files.find(entry.name)
        if file is None:
            if entry.optional:
                return []
            raise ConfigError(_missing(entry, primary))
        if file.path in self.open:
            raise ConfigError(f"{file.path}: its defaults list leads back to itself")
        package = entry.final(_absolute(file.package))
        key = entry.key if entry.kind == "group" else None
        items = [item.below(entry, package) for item in _list(file)]
        self._note_overrides(items, file, late)
        self.open.append(file.path)
        parts: list[list[_Placed] | _Entry] = []
        for item in reversed(items):
            if item.kind == "self":
                parts.append([_Placed(file, package)])
            elif not item.override and not item.group.startswith("hydra/"):
                parts += self._parts(item)
        placed = self._flat(parts)
        self.open.pop()
        return placed or [_Placed(file, package, key)]

    def _parts(self, item: _Entry) -> list[list[_Placed] | _Entry]:
        """What an entry of a list adds, last first; references wait until all else is chosen."""
        if item.kind == "group" and item.key in self.overrides:
            self.used.add(item.key)
            item = replace(item, choice=self.overrides[item.key])
        if isinstance(item.choice, list):
            each = [replace(item, kind="file", path=f"{item.path}/{name}", choice=None)
                    for name in item.choice]  # fmt: skip
            return [self.walk(one) for one in reversed(each)]
        return [item] if item.reference else [self.walk(item)]

    def _flat(self, parts: list[list[_Placed] | _Entry]) -> list[_Placed]:
        made = []
        for part in parts:
            if isinstance(part, _Entry):
                value = self._resolved(str(part.name if part.kind == "file" else part.choice))
                change = {"path": value} if part.kind == "file" else {"choice": value}
                part = self.walk(replace(part, **change), late=True)
            made.append(part)
        return [placed for part in reversed(made) for placed in part]

    def _resolved(self, text: str) -> str:
        def choice(found: re.Match[str]) -> str:
            if not isinstance(value := self.choices.get(found[1]), str):
                raise ConfigError(f"defaults list: nothing is chosen for '{found[0]}' "
                                  f"(chosen: {', '.join(self.choices)})")  # fmt: skip
            return value

        return re.sub(r"\$\{([^${}]*)\}", choice, text)

    def _choose(self, entry: _Entry) -> None:
        before = self.choices.setdefault(entry.key, entry.choice)
        if before != entry.choice:
            raise ConfigError(f"several values for {entry.key}: {entry.choice} and {before}; "
                              f"to change it write 'override {entry.key}: {before}'")  # fmt: skip

    def _note_overrides(self, items: list[_Entry], file: files.File, late: bool) -> None:
        seen = ""
        for item in items:
            if item.override:
                seen = item.key
                if late:
                    raise ConfigError(f"{file.path}: no override may stand in a file that was "
                                      f"named by reference ({item.key})")  # fmt: skip
                if item.group.startswith("hydra/") and "@" in item.key:
                    raise ConfigError(f"{file.path}: nothing to override: '{item.key}' is not "
                                      f"{item.group}: its first line must be '# @package _global_'")
                if not item.group.startswith("hydra/"):
                    self.overrides.setdefault(item.key, item.choice)  # type: ignore[arg-type]
                    self.said_in.setdefault(item.key, str(file.path))
            elif seen and item.kind != "self":
                raise ConfigError(f"{file.path}: overrides must be at the end of the defaults list "
                                  f"({seen} stands before {item.path})")  # fmt: skip

    def check_used(self) -> None:
        """Refuse an override that met nothing."""
        for key in self.overrides:
            if key not in self.used:
                where = f"{self.said_in[key]}: " if key in self.said_in else ""
                raise ConfigError(f"{where}nothing to override: no defaults list names '{key}'")


def _absolute(header: str | None) -> str | None:
    """The package of a header, which never depends on where the file is included."""
    if header is None or header == _GLOBAL or header.startswith(f"{_GLOBAL}."):
        return header
    return f"{_GLOBAL}.{header}"


def _missing(entry: _Entry, primary: bool) -> str:
    group, _, choice = str(entry.name).rpartition("/")
    text = unknown(group or "config", choice, files.choices(group))
    return text if primary or entry.kind == "group" else f"in a defaults list: {text}"


def _list(file: files.File) -> list[_Entry]:
    """The defaults list of a file, with ``_self_`` at its end where the file does not say."""
    made = [_parse(item, file) for item in file.defaults]
    selves = sum(item.kind == "self" for item in made)
    if selves > 1:
        raise ConfigError(f"{file.path}: _self_ stands twice in the defaults list")
    if not selves and any(not item.override for item in made):
        made.append(_Entry("self", _SELF))
    return made


def _parse(item: Any, file: files.File) -> _Entry:
    if isinstance(item, str):
        path, _, package = item.partition("@")
        if path == _SELF:
            return _Entry("self", _SELF)
        return _Entry("file", path, package=_package(item, package))
    if not isinstance(item, dict) or len(item) != 1:
        raise ConfigError(f"{file.path}: cannot read {item!r} in the defaults list; write a file, "
                          "'group: choice' or _self_")  # fmt: skip
    (key, choice), = item.items()
    *words, group = str(key).split()
    path, _, package = group.partition("@")
    listed = isinstance(choice, list) and all(isinstance(one, str) for one in choice)
    if not (choice is None or isinstance(choice, str) or listed):
        raise ConfigError(f"{file.path}: the choice of '{key}' must be a name, names or null")
    return _Entry("group", path, choice, _package(group, package),
                  optional="optional" in words, override="override" in words)  # fmt: skip


def _package(item: str, package: str) -> str | None:
    if "@" not in item:
        return None
    return "" if package == "_here_" else package
