"""Hugging Face VLMs: loading (``models.load``), and pruning inside unmodified classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.record import SampleRecord
    from models.runtime import PruningRun, prune

__all__ = ["PruningRun", "SampleRecord", "prune"]

_HOMES = {
    "SampleRecord": "models.record",
    "PruningRun": "models.runtime",
    "prune": "models.runtime",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `models.supported` can be read before torch is imported.
    if name not in _HOMES:
        raise AttributeError(f"module 'models' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
