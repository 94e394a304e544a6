"""Errors meant for the user: one clear line, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from vtprune import places


class HarnessError(Exception):
    """Something went wrong that the user can understand from one line.

    Commands it advises are shown as they can be typed here: see ``places.typed``.
    """

    exit_code = 1

    def __str__(self) -> str:
        return places.typed(super().__str__())


class ConfigError(HarnessError):
    """The request itself is wrong; nothing was computed."""

    exit_code = 2


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'gprune'?"`` for the nearest known name, or an empty string."""
    spelled = {word.lower().replace("-", "_"): word for word in map(str, known)}
    wanted = str(name).lower().replace("-", "_")
    near = difflib.get_close_matches(wanted, spelled, n=1, cutoff=0.5)
    return f"; did you mean '{spelled[near[0]]}'?" if near else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """One line saying that ``name`` does not exist, what is near, and what there is."""
    names = list(known)
    return f"unknown {kind} '{name}'{did_you_mean(name, names)} (available: {', '.join(names)})"


def one_line(error: BaseException, limit: int = 400) -> str:
    """The first meaningful line of an error, never longer than ``limit``; ours ten times that."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, HarnessError):
        return _cut(text or type(error).__name__, 10 * limit)
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return _cut(text, limit)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
