"""What may be written in a config: groups, their choices, and every key, read from conf/.

``conf/`` is every folder of :func:`folders`: ours, and those a user adds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vtprune.harness.request import defaults as lists
from vtprune.harness.request import files
from vtprune.harness.request.files import add_folders, folders, searching

__all__ = [
    "add_folders", "choices", "defaults", "entries", "flatten", "folders", "groups", "keys",
    "searching",
]  # fmt: skip
choices = files.choices
#: groups whose files are no part of a config under their own name
_ELSEWHERE = ("hydra", "table")
#: options that methods declare beside those their files list; their classes are behind torch,
#: which has no place here
UNLISTED = {"compose": ("parts",)}
_OPEN = ("experiment", "local@_global_")  # they change options of others, and add none


def groups() -> dict[str, list[str]]:
    """Config groups and their choices; conf/table lists cells and is no part of one."""
    names = {path.name for folder in folders() for path in folder.glob("*/") if path.is_dir()}
    return {name: choices(name) for name in sorted(names.difference(_ELSEWHERE))}


def entries(group: str, choice: str) -> dict[str, Any] | None:
    """A group's file as plain data, with what its defaults lists include; None: no such file.

    Raises:
        ConfigError: a file or a defaults list that Hydra would refuse.
    """
    file = files.find(f"{group}/{choice}")
    if file is None:
        return None  # from a search path that is not ours to know
    composed = lists.compose(f"{group}/{choice}", strict=False).config
    package = group if file.package is None else file.package
    for name in package.split(".") if package not in ("_global_", "") else []:
        composed = composed.get(name) or {}
    return composed


def keys(chosen: Mapping[str, str | None]) -> list[str]:
    """Every dotted key that a config with these group choices may hold."""
    there = {k: c if c is None or _there(k, c) else None for k, c in chosen.items()}
    there |= dict.fromkeys(_OPEN)
    composed = lists.compose("config", there, strict=False).config
    return flatten(composed)


def _there(key: str, choice: str) -> bool:
    return files.find(f"{key.partition('@')[0]}/{choice}") is not None


def defaults() -> dict[str, str | None]:
    """The choice of each group when the command line names none."""
    return {
        key.partition("@")[0]: choice for key, choice in lists.compose("config").choices.items()
    }


def flatten(config: Mapping[Any, Any], prefix: str = "") -> list[str]:
    """Dotted names of all entries, inner nodes included."""
    keys = []
    for key, value in config.items():
        keys.append(prefix + str(key))
        if isinstance(value, Mapping):
            keys += flatten(value, f"{prefix}{key}.")
    return keys
