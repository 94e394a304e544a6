"""Visual-token pruning inside unmodified Hugging Face models, measured.

    from vtprune import prune

    with prune(model, "gprune", ratio=0.9) as run:
        output = model.generate(**inputs)

The rooms of this package are folders at the top of the repository, linked here so that they have
one import name: ``vtprune.methods``, ``vtprune.models``, ``vtprune.harness``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtprune.models.context import prune
    from vtprune.models.record import SampleRecord
    from vtprune.models.run import PruningRun

__all__ = ["PruningRun", "SampleRecord", "prune"]


def __getattr__(name: str) -> Any:
    # Lazy: the command line answers `--help` and wrong words before torch is imported.
    if name not in __all__:
        raise AttributeError(f"module 'vtprune' has no attribute '{name}'")
    return getattr(import_module("vtprune.models"), name)
