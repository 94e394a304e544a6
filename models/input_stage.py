"""Smaller pictures, or none: what an :class:`methods.InputMethod` makes of the input.

Two kinds of encoders exist. Those of native resolution turn a picture of fewer pixels into fewer
tokens by themselves. Those that take square crops of one size are given smaller crops: processor
and model are told of the new size, position embeddings are interpolated by the library's own code,
and the mosaic of crops stays what it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from vtprune.methods import InputMethod, MethodError, TokenLayout
from vtprune.models.families import Family
from vtprune.models.record import Unreduced


class InputStage:
    """One input method with one model.

    Attributes:
        side: tokens along a side of the crops the model is to take; None where crops stay as they
            are (native resolution, or no picture at all).
    """

    def __init__(self, family: Family, method: InputMethod) -> None:
        self.family, self.method = family, method
        self.side: int | None = None
        if family.cell is None:
            full = family.crop_side
            grid = method.checked_grid(full, full, square=True)
            self.side = None if grid is None else grid[0]
            vision = family.model.config.vision_config
            #: pixels along a side of the smaller crops, and how much smaller they are
            self.pixels = (self.side or 0) * vision.patch_size
            self.scale = self.pixels / vision.image_size

    def reduce(
        self, images: Sequence[Sequence[Any]], processor: Any
    ) -> tuple[list[list[Any]], Any, list[Unreduced]]:
        """Pictures of every row as the method wants them, the processor for them, and the records'
        account of what was asked before.

        Args:
            images: per row, RGB pictures (PIL). The processor is to get all of them in one flat
                list (some processors treat pictures that come together as crops).

        Raises:
            MethodError: a picture cannot be made so small; names what is feasible.
        """
        rows, accounts = [], []
        for pictures in images:
            made = [self._picture(picture, processor) for picture in pictures]
            rows.append([picture for picture, *_ in made if picture is not None])
            accounts.append(
                Unreduced(
                    visual_tokens=sum(len(full) for _, full, _ in made),
                    grids=tuple((full.n_tiles, *full.patch_grid) for _, full, _ in made),
                    planned=tuple(grid for *_, grid in made if grid is not None),
                )
            )
        if self.side is not None:
            processor = self.family.smaller_processor(processor, self.side)
        return rows, processor, accounts

    def encoding(self) -> contextlib.AbstractContextManager[None]:
        """While the model encodes: its config speaks of the smaller crops."""
        if self.side is None:
            return contextlib.nullcontext()
        return self.family.smaller_crops(self.side)

    def _layout(self, size: tuple[int, int], processor: Any) -> TokenLayout:
        """Where the tokens of a picture of (width, height) come from, as the model stands."""
        width, height = size
        return self.family.layout(*self.family.fitted(height, width, processor))

    def _picture(
        self, picture: Any, processor: Any
    ) -> tuple[Any, TokenLayout, tuple[int, int, int] | None]:
        """The picture made smaller (None: left out), its layout before, its grid now."""
        full = self._layout(picture.size, processor)
        if self.family.cell is not None:
            return self._native(picture, full, processor, self.family.cell)
        if self.side is None:
            return None, full, None
        planned = (full.n_tiles, self.side, self.side)
        if not self.family.mosaic:
            return picture, full, planned  # the processor brings every picture to one size
        return self._mosaic(picture, full, processor), full, planned

    def _native(self, picture: Any, full: TokenLayout, processor: Any, cell: int) -> tuple:
        rows, cols = full.patch_grid
        grid = self.method.checked_grid(rows, cols, square=False)
        if grid is None:
            return None, full, None
        height, width = grid[0] * cell, grid[1] * cell
        if self.family.fitted(height, width, processor) != (height, width):
            least = self.family.fewest(processor)
            raise MethodError(
                f"{self.method.name}: {grid[0] * grid[1]} of {rows * cols} tokens are asked, but "
                f"the processor makes no picture of fewer than {least}: at most "
                f"ratio={max(0.0, 1 - least / (rows * cols)):.3f} here"
            )
        return _resized(picture, width, height), full, (1, *grid)

    def _mosaic(self, picture: Any, full: TokenLayout, processor: Any) -> Any:
        """A picture so much smaller that the library cuts it into as many smaller crops."""
        exact = [length * self.scale for length in picture.size]
        sizes = [tuple(max(1, round(n)) for n in exact), tuple(max(1, int(n)) for n in exact)]
        sizes.append(tuple(int(n) + 1 for n in exact))
        for width, height in sizes:  # rounding may tip the choice between two mosaics
            with self.encoding():
                now = self._layout((width, height), processor)
            if (now.n_tiles, now.tile_grid) == (full.n_tiles, full.tile_grid):
                return _resized(picture, width, height)
        raise MethodError(
            f"{self.method.name}: a picture of {picture.size} at {self.scale:.3f} of its size is "
            f"no longer cut into {full.n_tiles} crops; use another ratio"
        )


def _resized(picture: Any, width: int, height: int) -> Any:
    from PIL import Image

    return picture.resize((width, height), Image.Resampling.BICUBIC)
