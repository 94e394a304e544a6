"""No picture: the control that says what the question alone gives away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from vtprune.methods.inputs import InputMethod
from vtprune.methods.options import option
from vtprune.methods.registry import register


@register("text_only")
@dataclass(frozen=True, kw_only=True)
class TextOnly(InputMethod):
    """Ask the same question without the picture.

    A control of ours, no paper. The prompt is what the chat template makes of a message that has
    no image: neither placeholder nor visual token. ``ratio`` is 1 and nothing else.
    """

    ratio: Literal[1] = option(1.0, "1 and nothing else: every picture is left out")

    title = "no picture"
    paper = "-"
    example: ClassVar[Mapping[str, Any]] = {"ratio": 1.0}

    def grid(self, rows: int, cols: int, square: bool) -> None:
        return None
