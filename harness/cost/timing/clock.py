"""Clocks that wait for the device, medians with an interval, and peaks of memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any


def device_clock(device: str, kind: str = "wall") -> Callable[[], float]:
    """Seconds, read after everything queued on ``device`` is done.

    ``kind="cpu"`` is CPU time of this process, all threads together: on one thread it is the time
    an idle machine would take, whatever else runs.
    """
    if kind == "cpu":
        return time.process_time
    if not device.startswith("cuda"):
        return time.perf_counter
    import torch

    def now() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return now


def interval(values: Sequence[float], confidence: float = 0.9) -> tuple[float, float]:
    """Interval of the median at ``confidence``, from order statistics: no distribution assumed.

    The widest there is (smallest and largest value) where there are too few values.
    """
    ordered, n = sorted(values), len(values)
    rank = 0
    while 2 * (rank + 1) < n + 1:
        outside = 2 * sum(math.comb(n, i) for i in range(rank + 2)) / 2**n
        if 1 - outside < confidence:
            break
        rank += 1
    return ordered[rank], ordered[n - 1 - rank]


def summary(values: Sequence[float]) -> dict[str, float]:
    """``median``, ``low`` and ``high`` of some seconds."""
    low, high = interval(values)
    return {"median": median(values), "low": low, "high": high}


class PeakMemory:
    """Peak bytes between ``start`` and ``read``: of the device, or resident ones of the process.

    ``kind`` says which. On a CPU the weights are part of it, and None is read where the system
    does not let a process reset its peak.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        self.kind = "device" if self._cuda else "resident"
        self._works = False

    def start(self) -> None:
        if self._cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
            return
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets VmHWM on Linux
            self._works = True
        except OSError:
            self._works = False

    def read(self) -> int | None:
        if self._cuda:
            import torch

            return torch.cuda.max_memory_allocated()
        if not self._works:
            return None
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        peak = next((line for line in lines if line.startswith("VmHWM:")), None)
        return int(peak.split()[1]) * 1024 if peak else None


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values a dynamic cache holds, all layers."""
    tensors = (t for layer in cache.layers for t in (layer.keys, layer.values))
    return sum(t.numel() * t.element_size() for t in tensors)
