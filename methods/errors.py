"""The one error that methods raise on purpose."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MethodError(ValueError):
    """A method cannot do what was asked; the message is one line meant for the user."""


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` with the known word that is nearest, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
