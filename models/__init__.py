"""Hugging Face VLMs: loading (``models.load``), and pruning inside unmodified classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtprune.models.context import prune
    from vtprune.models.record import SampleRecord
    from vtprune.models.run import PruningRun

__all__ = ["PruningRun", "SampleRecord", "prune"]

_HOMES = {
    "SampleRecord": "vtprune.models.record",
    "PruningRun": "vtprune.models.run",
    "prune": "vtprune.models.context",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `models.supported` can be read before torch is imported.
    if name not in _HOMES:
        raise AttributeError(f"module 'vtprune.models' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
