"""Calls of ``generate``: which prompt the user asked, how many rows a sample has, what is refused.

Inside one call the first prefill is the prompt that was asked. Any other (the unconditional stream
of classifier-free guidance, a logits processor that calls the model) helps it and leaves no record.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from vtprune.models import refuse
from vtprune.models.batch import by_name
from vtprune.models.families import Family
from vtprune.models.shadow import shadowed


@dataclass
class Call:
    """One call of ``generate``: rows per sample, and whether its prompt was read already."""

    beams: int = 1
    asked: bool = False


class Calls:
    """The calls of ``generate`` under way, per thread, innermost last."""

    def __init__(self, family: Family, prunes: bool) -> None:
        self.family, self.prunes = family, prunes
        self._thread = threading.local()

    @contextlib.contextmanager
    def attached(self, waiting: Callable[[], bool]) -> Iterator[None]:
        """``generate`` of the model is watched for the duration, except while ``waiting()``."""

        def around(inner: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
            if waiting():
                return inner(*args, **kwargs)
            named = by_name(inspect.signature(inner), args, kwargs)
            if self.prunes:
                refuse.generation(self.family, named)
            under_way = self._under_way()
            beams = [refuse.option(self.family, named, n) for n in ("num_beams", _SEQUENCES)]
            under_way.append(Call(max(int(n or 1) for n in beams)))
            try:
                return inner(*args, **kwargs)
            finally:
                under_way.pop()

        with shadowed(self.family.model, "generate", around):
            yield

    def prompt(self) -> tuple[int, bool]:
        """A prefill begins: rows per sample, and whether it only helps the prompt asked."""
        under_way = self._under_way()
        if not under_way:
            return 1, False
        helper = under_way[-1].asked or any(call.asked for call in under_way)
        beams = 1 if helper else under_way[-1].beams
        under_way[-1].asked = True
        return beams, helper

    def _under_way(self) -> list[Call]:
        if not hasattr(self._thread, "calls"):
            self._thread.calls = []
        return self._thread.calls


_SEQUENCES = "num_return_sequences"
