"""Smaller pictures, or none: what an :class:`methods.InputMethod` makes of the input.

Two kinds of encoders exist. Those of native resolution turn a picture of fewer pixels into fewer
tokens by themselves. Those that take square crops of one size are given smaller crops: processor
and model are told of the new size, position embeddings are interpolated by the library's own code,
and the mosaic of crops stays what it was.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from vtprune.methods.base import InputMethod, MethodError, TokenLayout
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
        self.config = family.model.config
        self.vision = self.config.vision_config
        self.native = hasattr(self.vision, "spatial_merge_size")
        self.side: int | None = None
        if not self.native:
            full = self.vision.image_size // self.vision.patch_size
            grid = method.checked_grid(full, full, square=True)
            self.side = None if grid is None else grid[0]

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
        return rows, self._processor(processor), accounts

    @contextlib.contextmanager
    def encoding(self) -> Iterator[None]:
        """While the model encodes: its config speaks of the smaller crops."""
        if self.side is None:
            yield
            return
        pinpoints = getattr(self.config, "image_grid_pinpoints", None)
        before = self.vision.image_size
        hook = self.family.core.vision_tower.register_forward_pre_hook(
            _interpolate, with_kwargs=True
        )
        try:
            if pinpoints is not None:
                self.config.image_grid_pinpoints = self._scaled(pinpoints)
            self.vision.image_size = self.pixels
            yield
        finally:
            hook.remove()
            self.vision.image_size = before
            if pinpoints is not None:
                self.config.image_grid_pinpoints = pinpoints

    @property
    def pixels(self) -> int:
        """Pixels along a side of the smaller crops."""
        return self.side * self.vision.patch_size

    def _scaled(self, pinpoints: Sequence[Sequence[int]]) -> list[list[int]]:
        full = self.vision.image_size
        return [[n // full * self.pixels for n in pair] for pair in pinpoints]

    def _layout(self, size: tuple[int, int], processor: Any) -> TokenLayout:
        """Where the tokens of a picture of (width, height) come from, as the model stands."""
        width, height = size
        if self.native:
            patch, merge = self.vision.patch_size, self.vision.spatial_merge_size
            rows, cols = _native_size(processor, height, width, patch * merge)
            arguments = {"image_grid_thw": torch.tensor([[1, rows // patch, cols // patch]])}
            features = [torch.empty(rows * cols // (patch * merge) ** 2, 1)]
        else:
            arguments = {"image_sizes": torch.tensor([[height, width]])}
            crop = self.vision.image_size // self.vision.patch_size
            features = [torch.empty(crop**2, 1)]
        return self.family.pictures("image", arguments, features)[0].layout

    def _picture(
        self, picture: Any, processor: Any
    ) -> tuple[Any, TokenLayout, tuple[int, int, int] | None]:
        """The picture made smaller (None: left out), its layout before, its grid now."""
        full = self._layout(picture.size, processor)
        if self.native:
            return self._native(picture, full, processor)
        if self.side is None:
            return None, full, None
        planned = (full.n_tiles, self.side, self.side)
        if getattr(self.config, "image_grid_pinpoints", None) is None:
            return picture, full, planned  # the processor brings every picture to one size
        return self._mosaic(picture, full, processor), full, planned

    def _native(self, picture: Any, full: TokenLayout, processor: Any) -> tuple:
        rows, cols = full.patch_grid
        grid = self.method.checked_grid(rows, cols, square=False)
        if grid is None:
            return None, full, None
        cell = self.vision.patch_size * self.vision.spatial_merge_size
        height, width = grid[0] * cell, grid[1] * cell
        if _native_size(processor, height, width, cell) != (height, width):
            least = -(-_limits(processor)[0] // cell**2)
            raise MethodError(
                f"{self.method.name}: {grid[0] * grid[1]} of {rows * cols} tokens are asked, but "
                f"the processor makes no picture of fewer than {least}: at most "
                f"ratio={max(0.0, 1 - least / (rows * cols)):.3f} here"
            )
        return _resized(picture, width, height), full, (1, *grid)

    def _mosaic(self, picture: Any, full: TokenLayout, processor: Any) -> Any:
        """A picture so much smaller that the library cuts it into as many smaller crops."""
        scale = self.pixels / self.vision.image_size
        exact = [length * scale for length in picture.size]
        sizes = [tuple(max(1, round(n)) for n in exact), tuple(max(1, int(n)) for n in exact)]
        sizes.append(tuple(int(n) + 1 for n in exact))
        for size in sizes:  # rounding may tip the choice between two mosaics
            with self.encoding():
                now = self._layout(size, processor)
            if (now.n_tiles, now.tile_grid) == (full.n_tiles, full.tile_grid):
                return _resized(picture, *size)
        raise MethodError(
            f"{self.method.name}: a picture of {picture.size} at {scale:.3f} of its size is no "
            f"longer cut into {full.n_tiles} crops; use another ratio"
        )

    def _processor(self, processor: Any) -> Any:
        if self.side is None:
            return processor
        small = copy.copy(processor)
        small.image_processor = images = copy.deepcopy(processor.image_processor)
        for name in ("size", "crop_size"):
            if (given := getattr(images, name, None)) is not None:
                setattr(images, name, type(given)(**dict.fromkeys(dict(given), self.pixels)))
        if getattr(images, "image_grid_pinpoints", None) is not None:
            images.image_grid_pinpoints = self._scaled(images.image_grid_pinpoints)
        if hasattr(small, "num_image_tokens"):
            small.num_image_tokens = self.side**2
        return small


def _interpolate(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple:
    return args, {**kwargs, "interpolate_pos_encoding": True}


def _resized(picture: Any, width: int, height: int) -> Any:
    from PIL import Image

    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _limits(processor: Any) -> tuple[int, int]:
    """Fewest and most pixels a native-resolution processor makes of a picture."""
    size = processor.image_processor.size
    return size["shortest_edge"], size["longest_edge"]


def _native_size(processor: Any, height: int, width: int, cell: int) -> tuple[int, int]:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    least, most = _limits(processor)
    return smart_resize(height, width, factor=cell, min_pixels=least, max_pixels=most)
