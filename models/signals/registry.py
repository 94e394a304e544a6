"""Every signal that a method may ask for, by name.

A signal is a recipe: what has to be heard while the model runs, and how the values a method reads
come from that. How encoder patches become tokens is the family's answer, not the recipe's. A recipe
from another package registers in the same way; importing the file is enough:

    from vtprune.models import signals

    @signals.encoder("value_norm", hears="attention")
    def value_norm(heard):
        '''``[B, n]`` length of every patch's value, mean over heads.'''
        return heard.v.norm(dim=-1).mean(1)

A method then names it, ``needs = ("value_norm",)``, or at another encoder layer than the one the
features come from, ``needs = ("value_norm@9",)``, and reads ``view.signal("value_norm@9")``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from vtprune.models.errors import PruningUnsupported

Side = Literal["encoder", "language"]

#: what can be heard, by side; what a recipe gets is said in :func:`encoder` and :func:`language`
SOURCES: dict[Side, tuple[str, ...]] = {
    "encoder": (
        "attention", "states", "projector_in", "projector_out", "merging", "annotation", "question",
    ),
    "language": ("attention", "states", "entry"),
}  # fmt: skip
#: sources of one encoder layer, of which a method may choose another by ``name@layer``
LAYERED = ("attention", "states")


@dataclass(frozen=True)
class Signal:
    """One recipe.

    Attributes:
        hears: one of :data:`SOURCES`.
        layer: encoder layer heard unless another is asked for: ``features`` (whose output the
            projector reads) or ``last``.
        cls: it reads the CLS token.
        about: first line of the recipe's docstring.
    """

    name: str
    side: Side
    hears: str
    recipe: Callable[[Any], Any]
    layer: Literal["features", "last"] = "features"
    cls: bool = False
    about: str = ""


@dataclass(frozen=True)
class Asked:
    """A signal as a method asks for it: ``name`` or ``name@layer``, as spelled in ``text``."""

    text: str
    signal: Signal
    layer: int | None = None


_SIGNALS: dict[tuple[Side, str], Signal] = {}


def encoder(
    name: str,
    *,
    hears: str,
    layer: Literal["features", "last"] = "features",
    cls: bool = False,
) -> Callable[[Callable], Callable]:
    """Register a recipe for values per encoder patch.

    It is called with what was heard of one picture (crops ``B``, or one sequence) and returns
    ``[B, n, ...]``, ``n`` as heard, CLS included; the family cuts, merges and sorts:

    * ``attention``: a :class:`Heard` of the encoder layer;
    * ``states``: ``[B, n, C]`` hidden states leaving the encoder layer;
    * ``projector_in``, ``projector_out``: ``[B, n, C]`` and ``[B, n', d]``, without CLS;
    * ``merging``: bool ``[B, n']`` places that hold a token where a method merges in the encoder;
    * ``annotation``, ``question``: given by the caller, see ``PruningRun.begin``.

    Raises:
        ValueError: the name is taken, or no name; the source is unknown.
    """
    return _register("encoder", name, hears, layer, cls)


def language(name: str, *, hears: str) -> Callable[[Callable], Callable]:
    """Register a recipe for values per visual token inside the language model.

    It is called with a :class:`models.layer_signals.RowReading`, one row of the batch in front of
    the layer that drops, and returns what the method reads, ``[V, ...]`` or ``[.., V]``. ``hears``:

    * ``attention``: queries, keys and values of the layer before, ``row.tap``;
    * ``states``: no more than the states that enter the layer, ``row.hidden``;
    * ``entry``: what entered the first layer, ``row.entered``.

    Raises:
        ValueError: as in :func:`encoder`.
    """
    return _register("language", name, hears, "features", False)


def _register(
    side: Side, name: str, hears: str, layer: Any, cls: bool
) -> Callable[[Callable], Callable]:
    if not name.isidentifier():
        raise ValueError(f"signal name {name!r} is not a plain word")
    if hears not in SOURCES[side]:
        raise ValueError(f"signal '{name}' hears {hears!r}; there is {', '.join(SOURCES[side])}")

    def keep(recipe: Callable) -> Callable:
        before = _SIGNALS.get((side, name))
        if before is not None and before.recipe.__module__ != recipe.__module__:
            who = before.recipe.__module__
            raise ValueError(f"signal '{name}' is registered already, by {who}")
        about = (recipe.__doc__ or "").strip().partition("\n")[0]
        _SIGNALS[side, name] = Signal(name, side, hears, recipe, layer, cls, about)
        return recipe

    return keep


def available(side: Side) -> dict[str, Signal]:
    """Registered signals of one side by name, sorted."""
    found = {name: one for (where, name), one in _SIGNALS.items() if where == side}
    return dict(sorted(found.items()))


def asked(text: str, side: Side) -> Asked:
    """The signal that a method calls ``text``.

    Raises:
        PruningUnsupported: one line; an unknown name lists what there is, a layer is not a number
            or makes no sense.
    """
    name, at, layer = text.partition("@")
    known = available(side)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        where = "the encoder" if side == "encoder" else "the language model"
        raise PruningUnsupported(
            f"unknown signal '{name}' of {where}; {hint}there are {', '.join(known)}"
        )
    signal = known[name]
    if not at:
        return Asked(text, signal)
    if side == "language":
        raise PruningUnsupported(
            f"signal '{text}': inside the language model the layer before the drop is read; "
            f"ask for '{name}'"
        )
    if signal.hears not in LAYERED:
        raise PruningUnsupported(f"signal '{text}': '{name}' is not of one encoder layer")
    if not layer.isdecimal():
        raise PruningUnsupported(f"signal '{text}': the layer is a number, as in '{name}@9'")
    return Asked(text, signal, int(layer))


def sources(names: Iterable[str], side: Side) -> frozenset[str]:
    """What has to be heard for some signals of one side."""
    return frozenset(asked(name, side).signal.hears for name in names)
