"""What a run shows: a bar while it works, a small table at the end."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from harness import ranks
from harness.errors import ConfigError


class Progress:
    """A bar with samples/s, running score and time left; nothing at all when not on a terminal."""

    def __init__(self, mode: Any, title: str) -> None:
        if mode not in ("auto", True, False):
            raise ConfigError(f"progress must be auto, true or false: got {mode!r}")
        self._stream = sys.stderr  # taken now: libraries are redirected while the bar is drawn
        self._on = mode is True or (mode == "auto" and self._stream.isatty())
        self._on = self._on and not ranks.secondary()
        self._title, self._bar = title, None

    def update(self, done: int, total: int, score: float | None) -> None:
        """Show ``done`` of ``total`` samples and the score so far."""
        if not self._on:
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, desc=self._title, unit="sample", file=self._stream, disable=False,
                dynamic_ncols=True,
            )  # fmt: skip
        if score is not None:
            self._bar.set_postfix_str(f"score {score:.1f}", refresh=False)
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._bar is not None:
            self._bar.close()


def say(text: str) -> None:
    """One line of information, once per group of processes."""
    if not ranks.secondary():
        print(text, flush=True)
