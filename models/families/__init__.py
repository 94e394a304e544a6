"""One file per model family: where its visual tokens are, never which method runs."""

from __future__ import annotations

from typing import Any

from vtprune.models.errors import PruningUnsupported
from vtprune.models.families.base import CapturedImage, Family
from vtprune.models.families.llava import Llava
from vtprune.models.families.llava_next import LlavaNext
from vtprune.models.families.llava_onevision import LlavaOnevision
from vtprune.models.families.qwen2_vl import Qwen2VL, Qwen25VL

#: versions of transformers the adapters are written for: [first, before)
TRANSFORMERS_RANGE = ("5.23", "6")

FAMILIES: tuple[type[Family], ...] = (Llava, LlavaNext, LlavaOnevision, Qwen2VL, Qwen25VL)


def supported_model_types() -> tuple[str, ...]:
    """``model_type`` of every supported architecture."""
    return tuple(kind for family in FAMILIES for kind in family.model_types)


def family_of(model: Any) -> Family:
    """The adapter for a loaded Hugging Face model.

    Raises:
        PruningUnsupported: no adapter for the architecture or this version of transformers.
    """
    _check_library()
    kind = getattr(model.config, "model_type", type(model).__name__)
    for family in FAMILIES:
        if kind in family.model_types:
            return family(model)
    raise PruningUnsupported(
        f"no visual-token adapter for architecture '{kind}' "
        f"(supported: {', '.join(supported_model_types())})"
    )


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


__all__ = [
    "FAMILIES",
    "TRANSFORMERS_RANGE",
    "CapturedImage",
    "Family",
    "family_of",
    "supported_model_types",
]
