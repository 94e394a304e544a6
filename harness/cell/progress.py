"""What a run shows: a bar while it works, a small table at the end."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Any

from vtprune.harness.cell import ranks
from vtprune.harness.request.errors import ConfigError

LINE_EVERY = 30.0  # seconds between two lines in a log


class Progress:
    """A bar with samples/s, running score and time left; in a job's log now and then a line."""

    def __init__(self, mode: Any, title: str) -> None:
        if mode not in ("auto", True, False):
            raise ConfigError(f"progress must be auto, true or false: got {mode!r}")
        # Taken now: libraries are redirected while the bar is drawn.
        self._stream, self._out = sys.stderr, sys.stdout
        self._on = mode is True or (mode == "auto" and self._stream.isatty())
        self._on = self._on and not ranks.secondary()
        self._lines = mode == "auto" and not self._on and "SLURM_JOB_ID" in os.environ
        self._lines = self._lines and not ranks.secondary()
        self._began = self._told = time.monotonic()
        self._title, self._bar = title, None

    def _line(self, done: int, total: int, score: float | None) -> None:
        """``progress cell=... done=... total=...``: words for people, key=value for programs."""
        now = time.monotonic()
        if now - self._told < LINE_EVERY and done < total:
            return
        self._told, rate = now, done / max(now - self._began, 1e-9)
        shown = "" if score is None else f" score={score:.1f}"
        eta = f"{(total - done) / rate:.0f}"
        print(f"progress cell={self._title.replace(' ', '-')} done={done} total={total} "
              f"samples_per_s={rate:.1f}{shown} eta_s={eta}",
              file=self._stream, flush=True)  # fmt: skip

    def say(self, text: str) -> None:
        """One line of information, past the libraries, once per group of processes."""
        if not ranks.secondary():
            print(text, file=self._out, flush=True)

    def update(self, done: int, total: int, score: float | None) -> None:
        """Show ``done`` of ``total`` samples and the score so far."""
        if self._lines:
            self._line(done, total, score)
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
