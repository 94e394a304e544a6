"""Methods for drills: one takes its time, and is broken at some ratio; one kills its process."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

from vtprune.methods.random import RandomPruning

SLOW, BROKEN = (0.6, 0.8), 0.95


@dataclass(frozen=True, kw_only=True)
class Drill(RandomPruning):
    """Random removal, ``delay`` seconds an image."""

    delay: float = 0.0

    def score(self, view):
        if self.ratio == BROKEN:
            raise RuntimeError("this ratio is broken")
        time.sleep(self.delay * (5 if self.ratio in SLOW else 1))
        return super().score(view)


@dataclass(frozen=True, kw_only=True)
class Mortal(RandomPruning):
    """Random removal that takes its process along at the ``at``-th image, while DRILL is set."""

    at: int = 5

    def score(self, view):
        seen.append(view.key)
        if len(seen) >= self.at and os.environ.get("DRILL"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score(view)


seen: list = []  # of this process


@dataclass(frozen=True, kw_only=True)
class Moody(RandomPruning):
    """Random removal that refuses the third and fourth image, while DRILL is set."""

    def score(self, view):
        if os.environ.get("DRILL") and view.key[0].endswith((":2", ":3")):
            raise RuntimeError("not this one")
        return super().score(view)
