"""One file per model family: where its visual tokens are, never which method runs."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from vtprune.models.errors import PruningUnsupported
from vtprune.models.families.base import CapturedImage, Family
from vtprune.models.supported import ADAPTERS

#: versions of transformers the adapters are written for: [first, before)
TRANSFORMERS_RANGE = ("5.23", "6")


def adapter(model_type: str) -> type[Family]:
    """The family class of a supported architecture."""
    module, _, name = ADAPTERS[model_type].partition(":")
    return getattr(import_module(f"vtprune.models.families.{module}"), name)


def family_of(model: Any) -> Family:
    """The adapter for a loaded Hugging Face model.

    Raises:
        PruningUnsupported: no adapter for the architecture, its tower, or this version of
            transformers.
    """
    _check_library()
    kind = getattr(model.config, "model_type", type(model).__name__)
    if kind not in ADAPTERS:
        raise PruningUnsupported(
            f"no visual-token adapter for architecture '{kind}' (supported: {', '.join(ADAPTERS)})"
        )
    return adapter(kind)(model)


def _check_library() -> None:
    import transformers

    def number(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())

    first, before = TRANSFORMERS_RANGE
    found = transformers.__version__
    if not number(first) <= number(found) < number(before):
        raise PruningUnsupported(
            f"transformers {found} is outside the supported range [{first}, {before})"
        )


__all__ = ["TRANSFORMERS_RANGE", "CapturedImage", "Family", "adapter", "family_of"]
