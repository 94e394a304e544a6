"""What the options of the methods that ship may be, known without torch.

``methods/declared.json`` holds what the classes declare; it is made from them, as the files of
``conf/method`` are, by ``python scripts/methods.py --write``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from vtprune import places
from vtprune.harness.request.errors import ConfigError
from vtprune.methods.options import Declared

FILE = "methods/declared.json"


@cache
def _content() -> dict[str, Any]:
    return json.loads(places.path(FILE).read_text(encoding="utf-8"))


def names() -> list[str]:
    """Methods that ship."""
    return sorted(_content())


@cache
def declared(name: str) -> dict[str, Declared]:
    """The options of a method that ships, by name; empty for any other."""
    return {
        option: Declared(
            **{**said, "name": option, "types": tuple(said["types"]),
               "choices": tuple(said["choices"])}
        )
        for option, said in _content().get(name, {}).get("options", {}).items()
    }  # fmt: skip


def about(name: str) -> Mapping[str, str]:
    """``title``, ``paper`` and ``summary`` of a method that ships."""
    return _content()[name]


def check(method: Mapping[str, Any]) -> None:
    """Refuse a value that an option of a config's ``method`` group cannot have.

    What depends on several options, or is a class from outside, is checked when it is built.

    Raises:
        ConfigError: one line that names the option, its value and what it may be.
    """
    if method.get("_target_"):
        return
    for name, one in declared(str(method.get("name"))).items():
        if name in method and (reason := one.wrong(method[name])):
            raise ConfigError(f"{method['name']}: {name}={method[name]!r} {reason}")
