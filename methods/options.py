"""Options of methods, each declared once: its default, what it may be, and a sentence on it.

    threshold: float = option(0.5, "smallest cosine that makes an edge", low=-1, high=1)
    edge: Literal["clip", "shift"] = option("clip", "clip = cosine | shift = less the threshold")

The annotation says of which type a value is, and ``Literal`` which words it may be. Checks, the
files of ``conf/method`` and the lists in ``docs/methods.md`` all come from this declaration. A
subclass that only wants another default writes ``edge: Edge = "shift"``; the rest is inherited.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from vtprune.methods.errors import MethodError, nearest


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    factory: Callable[[], Any] | None = None,
    extra: bool = False,
) -> Any:
    """A dataclass field that is an option of a method.

    Args:
        default: value when none is given; ``factory`` makes it where it is mutable.
        help: one sentence for the config file and the documentation.
        low, high: bounds of a number that are allowed; above, below: bounds that are not.
        extra: known, but not listed in the config file (nor part of a cell unless given).
    """
    said = {"help": help, "low": low, "above": above, "high": high, "below": below, "extra": extra}
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata={"option": said})
    return dataclasses.field(default=default, metadata={"option": said})


@dataclasses.dataclass(frozen=True)
class Declared:
    """An option as it stands in a class: what is said of it, and what its annotation allows.

    Attributes:
        types: of ``bool int float str tuple mapping any`` those it may be, None not included.
        choices: the words it may be, if it is a word.
        optional: whether it may be None.
    """

    name: str
    default: Any
    help: str
    types: tuple[str, ...]
    choices: tuple[Any, ...]
    optional: bool
    low: float | None
    above: float | None
    high: float | None
    below: float | None
    extra: bool

    @property
    def range(self) -> str:
        """``[0, 1)`` for a bounded number, else nothing."""
        bounds = (self.low, self.above, self.high, self.below)
        if all(bound is None for bound in bounds):
            return ""
        left = f"({self.above:g}" if self.above is not None else "(-inf"
        left = f"[{self.low:g}" if self.low is not None else left
        right = f"{self.below:g})" if self.below is not None else "inf)"
        right = f"{self.high:g}]" if self.high is not None else right
        return f"{left}, {right}"

    @property
    def allowed(self) -> str:
        """What it may be, in words."""
        said = [str(word) for word in self.choices]
        if "bool" in self.types:
            said += ["true", "false"]
        if {"int", "float"} & set(self.types):
            whole = "whole " if "float" not in self.types else ""
            said.append(f"a {whole}number" + (f" in {self.range}" if self.range else ""))
        said += ["a list of numbers"] * ("tuple" in self.types)
        said += ["a mapping"] * ("mapping" in self.types) + ["a word"] * ("str" in self.types)
        return " or ".join(said + ["null"] * self.optional)

    @property
    def sentence(self) -> str:
        """The help, led by the words it may be where the help does not name all of them."""
        named = all(str(word) in self.help for word in self.choices)
        words = "" if named else " | ".join(map(str, self.choices))
        text = ": ".join(filter(None, (words, self.help)))
        return f"{text}, {self.range}" if self.range and self.range not in text else text

    def fits(self, value: Any) -> bool:
        """Whether ``value`` may be given."""
        if value is None:
            return self.optional or "any" in self.types
        if isinstance(value, bool):
            return bool({"bool", "any"} & set(self.types))
        if self.choices and any(value == word for word in self.choices):
            return True
        if isinstance(value, (int, float)):
            typed = "float" in self.types or ("int" in self.types and isinstance(value, int))
            return "any" in self.types or (typed and self._inside(value))
        if isinstance(value, (list, tuple)) and "tuple" in self.types:
            return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
        if isinstance(value, Mapping) and "mapping" in self.types:
            return True
        return "any" in self.types or (isinstance(value, str) and "str" in self.types)

    def _inside(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.high is None or value <= self.high)
            and (self.below is None or value < self.below)
        )

    def wrong(self, value: Any) -> str:
        """What is wrong with ``value``, as the end of a sentence; empty if nothing is."""
        if self.fits(value):
            return ""
        if self.choices and (isinstance(value, str) or set(self.types) <= {"int"}):
            words = [str(word) for word in self.choices]
            return f"is not one of {', '.join(words)}{nearest(str(value), words)}"
        return f"must be {self.allowed}"


@functools.cache
def declared(cls: type) -> dict[str, Declared]:
    """The options of a class that are declared by :func:`option`, by name in order."""
    found = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        said = _said(cls, field.name)
        if said is None:
            continue
        types_, choices, optional = _allowed(cls, field.name)
        made = field.default_factory is not dataclasses.MISSING
        default = field.default_factory() if made else field.default  # type: ignore[misc]
        found[field.name] = Declared(field.name, default, types=types_, choices=choices,
                                     optional=optional, **said)  # fmt: skip
    return found


def check(method: Any) -> None:
    """Refuse the first option whose value its declaration does not allow; lists become tuples.

    Raises:
        MethodError: one line that names the option, its value and what it may be.
    """
    for name, one in declared(type(method)).items():
        value = getattr(method, name)
        if reason := one.wrong(value):
            raise MethodError(f"{method.name}: {name}={value!r} {reason}")
        if isinstance(value, list) and "tuple" in one.types:
            object.__setattr__(method, name, tuple(value))


def _said(cls: type, name: str) -> dict[str, Any] | None:
    """What the nearest class up the line says of an option; a plain default says nothing."""
    for base in cls.__mro__:
        field = base.__dict__.get("__dataclass_fields__", {}).get(name)
        if field is not None and "option" in field.metadata:
            return dict(field.metadata["option"])
    return None


_PLAIN = {bool: "bool", int: "int", float: "float", str: "str", tuple: "tuple", Any: "any"}


def _allowed(cls: type, name: str) -> tuple[tuple[str, ...], tuple[Any, ...], bool]:
    """Types, choices, and whether None is allowed, read from an option's annotation."""
    types_: list[str] = []
    choices: list[Any] = []
    optional = False
    for one in _alternatives(_annotation(cls, name)):
        origin = typing.get_origin(one) or one
        if one is types.NoneType:
            optional = True
        elif origin is Literal:
            choices += typing.get_args(one)
        elif isinstance(origin, type) and issubclass(origin, Mapping):
            types_.append("mapping")
        elif origin in (tuple, list, Sequence):
            types_.append("tuple")
        elif origin in _PLAIN:
            types_.append(_PLAIN[origin])
        else:
            raise TypeError(f"{cls.__name__}.{name}: an option cannot be a {one}")
    if None in choices:
        choices.remove(None)
        optional = True
    return tuple(types_), tuple(choices), optional


def _alternatives(annotation: Any) -> Sequence[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _annotation(cls: type, name: str) -> Any:
    for base in cls.__mro__:
        text = inspect.get_annotations(base).get(name)
        if text is not None:
            space = vars(sys.modules[base.__module__])
            return eval(text, dict(space)) if isinstance(text, str) else text
    raise TypeError(f"{cls.__name__}.{name} has no annotation")
