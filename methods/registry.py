"""Names of methods: every module of this package registers itself, others come by entry point.

An installed package adds a method without touching this repository by declaring

    [project.entry-points."visual_token_pruning.methods"]
    my_method = "my_package.my_module:MyMethod"
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, TypeVar

from vtprune.methods.errors import MethodError, nearest
from vtprune.methods.method import PruningMethod

ENTRY_POINT_GROUP = "visual_token_pruning.methods"
_REGISTRY: dict[str, type[PruningMethod]] = {}
_loaded = False

M = TypeVar("M", bound=type[PruningMethod])


def register(name: str) -> Callable[[M], M]:
    """Class decorator: make a method available under ``name`` (its config and table name)."""

    def decorate(cls: M) -> M:
        known = _REGISTRY.get(name)
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise MethodError(f"method name '{name}' is taken by {known.__module__}")
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return decorate


def _load_all() -> None:
    global _loaded
    if _loaded:
        return
    package = importlib.import_module("vtprune.methods")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"vtprune.methods.{module.name}")
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name not in _REGISTRY:
            register(point.name)(point.load())
    _loaded = True


def available() -> list[str]:
    """Names of all methods, sorted."""
    _load_all()
    return sorted(_REGISTRY)


def get(name: str) -> type[PruningMethod]:
    """The method class called ``name``; :class:`MethodError` names the nearest one otherwise."""
    _load_all()
    if name not in _REGISTRY:
        hint = nearest(name, _REGISTRY)
        raise MethodError(f"unknown method '{name}'{hint} (available: {', '.join(available())})")
    return _REGISTRY[name]


def build(name: str | type[PruningMethod], **options: Any) -> PruningMethod:
    """Make a method from its name (or class) and options.

    Raises:
        MethodError: unknown name, unknown option, or a value outside its feasible range.
    """
    cls = get(name) if isinstance(name, str) else name
    known = [f.name for f in dataclasses.fields(cls)]
    for option in options:
        if option not in known:
            raise MethodError(
                f"method '{cls.name}' has no option '{option}'{nearest(option, known)} (options: "
                f"{', '.join(known)})"
            )
    return cls(**options)
