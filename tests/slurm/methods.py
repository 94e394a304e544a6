"""A method for drills: it takes its time, and some ratios of it more; one is broken."""

from __future__ import annotations

import time
from dataclasses import dataclass

from methods.random import RandomPruning

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
