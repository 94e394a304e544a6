"""No picture: the control that says what the question alone gives away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vtprune.methods.base import InputMethod, MethodError
from vtprune.methods.registry import register


@register("text_only")
@dataclass(frozen=True, kw_only=True)
class TextOnly(InputMethod):
    """Ask the same question without the picture.

    A control of ours, no paper. The prompt is what the chat template makes of a message that has
    no image: neither placeholder nor visual token. ``ratio`` is 1 and nothing else.
    """

    ratio: float = 1.0

    title = "no picture"
    paper = "-"
    example: ClassVar[Mapping[str, Any]] = {"ratio": 1.0}

    def _check_ratio(self) -> None:
        if self.ratio != 1:
            raise MethodError(
                f"text_only: leaves every picture out, so ratio={self.ratio} cannot be met; use 1"
            )

    def grid(self, rows: int, cols: int, square: bool) -> None:
        return None
