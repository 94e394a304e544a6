"""Methods that merge patches between the layers of the encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtprune.methods.merging import Merged
from vtprune.methods.method import PruningMethod, everything
from vtprune.methods.options import option
from vtprune.methods.tokens import Newline
from vtprune.methods.views import ImageTokens, Selection


@dataclass(frozen=True, kw_only=True)
class EncoderMethod(PruningMethod):
    """A method that merges patches between the layers of the encoder.

    The tower runs on fewer and fewer patches; what is left returns to the places of its
    representatives, and the empty places are dropped before the language model.
    """

    newline: Newline = option("keep", "row-end tokens: keep | drop, candidate = removed")

    stage: ClassVar = "vision"
    place: ClassVar = "encoder"
    needs: ClassVar[tuple[str, ...]] = ("merge_slots",)
    merges: ClassVar[bool] = True

    def plan(self, n_layers: int, n_patches: int) -> list[int]:
        """Patches merged away in front of each of ``n_layers`` encoder layers.

        Raises:
            MethodError: the ratio cannot be met.
        """
        raise NotImplementedError(f"{type(self).__name__} must define plan")

    def merge(self, state: Merged, keys: Tensor, q: int) -> Merged:
        """One crop with ``q`` patches fewer, by head-mean ``keys [n, c]`` of the layer before."""
        raise NotImplementedError(f"{type(self).__name__} must define merge")

    def keep(self, image: ImageTokens) -> Selection:
        """The tokens whose places are not empty, and row ends as ``newline`` says."""
        if self.ratio == 0:
            return everything(image)
        layout, slots = image.layout, image.signal("merge_slots")
        rows, cols = layout.patch_grid
        self.fit("merge_slots", slots, {0: layout.n_tiles, 1: rows * cols})
        ends = layout.newline.to(slots.device)
        tile, patch = layout.tile.clamp(min=0).to(slots.device), layout.patch.to(slots.device)
        alive = slots[tile, patch] & ~ends
        if self.newline == "keep":
            alive = alive | ends
        indices = torch.nonzero(alive).squeeze(1).to(image.features.device)
        # Handed on as rewritten: an unmerged tower would have put other vectors there.
        return Selection(indices, image.features[indices])
