"""``task=time``: the timing pass, apart from the accuracy pass; baseline and method in one run."""

from __future__ import annotations

from typing import Any

from vtprune.harness.request.request import Request

__all__ = ["run_timing"]


def run_timing(request: Request, *, reuse: bool = False) -> dict[str, Any]:
    """Time a method and the unpruned model; see :mod:`vtprune.harness.cost.timing.run`."""
    from vtprune.harness.cost.timing.run import run_timing as run

    return run(request, reuse=reuse)
