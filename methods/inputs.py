"""Controls that change the picture before anything is encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vtprune.methods.errors import MethodError
from vtprune.methods.method import PruningMethod


@dataclass(frozen=True, kw_only=True)
class InputMethod(PruningMethod):
    """A control that makes the picture smaller, or leaves it out.

    No token is dropped: the prompt simply is another, shorter one, for which the model computes as
    ever. So there is nothing to mask, and ``positions`` has no meaning; such a run equals an
    ordinary one on the changed picture.
    """

    stage: ClassVar = "input"
    place: ClassVar = "picture"

    def grid(self, rows: int, cols: int, square: bool) -> tuple[int, int] | None:
        """Grid of tokens to ask for in place of ``rows x cols``; None leaves the picture out.

        Args:
            rows, cols: tokens of the unchanged picture, or of one crop where the encoder cuts
                pictures into crops of one size.
            square: the encoder takes square crops only.
        """
        raise NotImplementedError(f"{type(self).__name__} must define grid")

    def checked_grid(self, rows: int, cols: int, square: bool) -> tuple[int, int] | None:
        """``grid`` with its promises verified."""
        made = self.grid(rows, cols, square)
        if made is None:
            return None
        down, across = made
        if not (1 <= down <= rows and 1 <= across <= cols) or (square and down != across):
            raise MethodError(f"{self.name}: invalid grid {made} for one of {(rows, cols)}")
        return made
