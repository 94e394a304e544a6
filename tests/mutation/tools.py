"""Putting a defect into the product, and knowing that the check which fails did run it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from vtprune.methods import MethodError
from vtprune.models.signals import registry

#: what a check that found a defect raises; a method refuses broken picks itself, but a defect that
#: merely crashes has proved nothing
RED = (AssertionError, MethodError)


class Defects:
    """Replacements of functions of the product, each counted when it is called."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch
        self.calls: dict[str, int] = {}

    def recipe(self, side: registry.Side, name: str, make: Callable[[Any], Any]) -> None:
        """Put ``make(inner)`` in the place of a signal's recipe."""
        signal, label = registry.available(side)[name], f"signal {name}"
        made = make(signal.recipe)
        self.calls[label] = 0

        def counted(heard: Any) -> Any:
            self.calls[label] += 1
            return made(heard)

        changed = dataclasses.replace(signal, recipe=counted)
        self.patch.setitem(registry._SIGNALS, (side, name), changed)

    def swap(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Put ``make(inner)`` in the place of the function or method ``owner.name``."""
        inner = getattr(owner, name)
        assert callable(inner), f"{owner}.{name} is no function"
        made, label = make(inner), f"{getattr(owner, '__name__', owner)}.{name}"
        self.calls[label] = 0

        def counted(*args: Any, **kw: Any) -> Any:
            self.calls[label] += 1
            return made(*args, **kw)

        self.patch.setattr(owner, name, counted)

    def assert_reached(self) -> None:
        assert self.calls, "no defect was put in"
        idle = [label for label, count in self.calls.items() if not count]
        assert not idle, f"the check never came to {', '.join(idle)}"


def assert_noticed(
    patch: pytest.MonkeyPatch,
    defect: Callable[[Defects], None],
    check: Callable[[], None],
    red: tuple[type[BaseException], ...] = RED,
) -> None:
    """``check`` is green, and red once the defect is in."""
    check()
    defects = Defects(patch)
    defect(defects)
    with pytest.raises(red):
        check()
    defects.assert_reached()
