"""An option is declared once: what it may be, its sentence, and the line that refuses the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from vtprune import methods
from vtprune.methods import MethodError, TokenMethod, option
from vtprune.methods.options import declared


@dataclass(frozen=True, kw_only=True)
class Mine(TokenMethod):
    share: float = option(0.5, "a share", low=0, below=1)
    step: float = option(0.1, "a step", above=0, high=1)
    count: int | None = option(None, "a count", low=1)
    word: Literal["near", "far"] = option("near", "which end")
    label: Literal[64, 128] | None = option(None, "a label")
    deep: tuple[float, ...] = option((0.5,), "depths")
    more: Mapping[str, Any] = option(factory=dict, help="of a part")
    on: bool = option(False, "a switch")
    free: str = option("x", "a word")
    either: Literal["all"] | tuple[float, ...] = option("all", "all | numbers")

    name = "mine"


@dataclass(frozen=True, kw_only=True)
class Theirs(Mine):
    share: float = 0.25
    word: Literal["far"] = "far"

    name = "theirs"


GOOD: list[tuple[str, Any]] = [
    ("share", 0), ("share", 0.999), ("step", 1), ("step", 1e-9), ("count", None), ("count", 1),
    ("word", "far"), ("label", 64), ("label", None), ("deep", (1, 2)), ("deep", []), ("more", {}),
    ("on", True), ("free", "y"), ("either", "all"), ("either", [0.5]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), GOOD, ids=str)
def test_what_is_declared_is_taken(name, value):
    found = getattr(Mine(**{name: value}), name)
    assert found == (tuple(value) if isinstance(value, list) else value)


BAD: list[tuple[str, Any, str]] = [
    ("share", 1, "must be a number in [0, 1)"),
    ("share", -0.1, "must be a number in [0, 1)"),
    ("share", float("nan"), "must be a number in [0, 1)"),
    ("share", "0.5", "must be a number in [0, 1)"),
    ("share", True, "must be a number in [0, 1)"),
    ("share", None, "must be a number in [0, 1)"),
    ("step", 0, "must be a number in (0, 1]"),
    ("step", 1.01, "must be a number in (0, 1]"),
    ("count", 0, "must be a whole number in [1, inf) or null"),
    ("count", 1.5, "must be a whole number in [1, inf) or null"),
    ("count", float("inf"), "must be a whole number in [1, inf) or null"),
    ("word", "fra", "is not one of near, far; did you mean 'far'?"),
    ("label", 65, "is not one of 64, 128"),
    ("deep", (0.5, "x"), "must be a list of numbers"),
    ("deep", (True,), "must be a list of numbers"),
    ("deep", 0.5, "must be a list of numbers"),
    ("more", [1], "must be a mapping"),
    ("on", 1, "must be true or false"),
    ("on", "yes", "must be true or false"),
    ("free", 3, "must be a word"),
    ("either", "al", "is not one of all; did you mean 'all'?"),
    ("ratio", 1.0, "must be a number in [0, 1)"),
    ("rounding", "floro", "is not one of floor, round_half_even, int_raw; did you mean 'floor'?"),
    ("seed", 0.5, "must be a whole number"),
]


@pytest.mark.parametrize(("name", "value", "line"), BAD, ids=str)
def test_everything_else_is_refused_with_what_it_may_be(name, value, line):
    with pytest.raises(MethodError) as error:
        Mine(**{name: value})
    assert str(error.value) == f"mine: {name}={value!r} {line}"


def test_a_class_that_changes_a_default_inherits_the_rest():
    one = declared(Theirs)["share"]
    assert (one.default, one.help, one.range) == (0.25, "a share", "[0, 1)")
    with pytest.raises(MethodError, match=r"theirs: share=1 must be a number in \[0, 1\)"):
        Theirs(share=1)
    with pytest.raises(MethodError, match=r"theirs: word='near' is not one of far"):
        Theirs(word="near")


@pytest.mark.parametrize("name", methods.available())
def test_every_option_of_every_method_has_a_sentence_and_a_default_it_allows(name):
    cls = methods.get(name)
    found = declared(cls)
    assert list(found) == list(methods.build(name).options()), "a field that is no option"
    for one in found.values():
        assert one.help and one.fits(one.default), one.name
        assert one.sentence.count("\n") == 0
