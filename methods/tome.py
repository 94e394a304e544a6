"""Token Merging: similar tokens are averaged instead of dropped."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtprune.methods.cost import SelectionShape
from vtprune.methods.encoder import EncoderMethod
from vtprune.methods.errors import MethodError
from vtprune.methods.merging import Merged, merge_round, merge_rounds, merge_tokens
from vtprune.methods.method import PruningMethod
from vtprune.methods.options import option
from vtprune.methods.registry import register
from vtprune.methods.tokens import TokenMethod
from vtprune.methods.views import ImageTokens, Selection, View


@dataclass(frozen=True, kw_only=True)
class ToMeInTower(EncoderMethod):
    """``tome`` with ``placement=vision_encoder``: a few patches in front of every encoder layer."""

    per_round: int | None = option(
        None, "most patches merged in front of a layer; null = as even as layers allow", low=1
    )

    name = "tome"
    title = "ToMe"
    paper = "arXiv:2210.09461"

    def plan(self, n_layers: int, n_patches: int) -> list[int]:
        """Patches merged away in front of each of ``n_layers`` encoder layers.

        As even as whole numbers allow, or ``per_round`` until enough are gone.

        Raises:
            MethodError: ``per_round`` is too small, or layers are too few, for the ratio.
        """
        left = n_patches - self.count(n_patches)
        plan, n = [], n_patches
        for layer in range(n_layers):
            share = -(-left // (n_layers - layer)) if self.per_round is None else self.per_round
            plan.append(min(left, n // 2, share))
            left, n = left - plan[-1], n - plan[-1]
        if left:
            raise MethodError(
                f"tome: {n_layers} encoder layers leave {n} of {n_patches} patches at least, "
                f"{self.count(n_patches)} are wanted; use a larger per_round or a lower ratio"
            )
        return plan

    def merge(self, state: Merged, keys: Tensor, q: int) -> Merged:
        """``q`` patches of one crop merged by the similarity of ``keys [n, c]``."""
        return merge_round(state, keys, q)[0]

    def cost(self, shape: SelectionShape) -> int:
        """(n / 2)^2 d per layer on n patches."""
        total, n = 0, shape.patches
        for q in shape.merged:
            total += (n // 2) * (n - n // 2) * shape.vision_head if q else 0
            n -= q
        return total * shape.tiles


@register("tome")
@dataclass(frozen=True, kw_only=True)
class ToMe(TokenMethod):
    """Merge the most similar tokens between projector and language model.

    Bipartite soft matching of "Token Merging: Your ViT But Faster" (arXiv 2210.09461), as the
    G-Prune paper uses it for a baseline, of which nothing but throughput is known. Deviations from
    the original, which merges a few tokens in every encoder layer: it acts once, on the projected
    tokens of each view, in as few rounds as halving allows, compares the tokens themselves instead
    of attention keys, and does not weigh attention by size. A group sits where its odd-place
    member was; row-end tokens are left out and kept.

    ``metric=clip_keys`` compares the head-mean attention keys of the encoder's last used layer
    (signal ``vision_keys [N, c]``; the mean stands for a merged group, as no layer computes new
    keys). ``order=tome`` leaves tokens in the order of the matching (needs ``positions=compact``).
    ``placement=vision_encoder`` works as in the original: some patches go in front of every encoder
    layer, by the head-mean keys of the layer before, with attention that weighs a token by its
    size. CLS takes no part. Merging sits between layers instead of between attention and MLP.
    """

    metric: Literal["tokens", "clip_keys"] = option(
        "tokens", "what is compared: tokens | clip_keys = attention keys of the encoder"
    )
    per_round: int | None = option(
        None, "most tokens merged per round; null = half of those left", low=1
    )
    order: Literal["spatial", "tome"] = option(
        "spatial", "spatial = by position | tome = as the matching leaves them (positions=compact)"
    )
    placement: Literal["projector", "vision_encoder"] = option(
        "projector", "projector = once, behind it | vision_encoder = between the encoder's layers"
    )

    title = "ToMe"
    instead: ClassVar[Mapping[str, str]] = {"merge_slots": "placement=projector"}
    paper = "arXiv:2210.09461"
    merges = True

    def __post_init__(self) -> None:
        super().__post_init__()
        plain = (self.metric, self.order) == ("tokens", "spatial")
        if self.placement == "vision_encoder" and not plain:
            raise MethodError(
                "tome: placement=vision_encoder compares attention keys and keeps spatial order; "
                "metric and order belong to placement=projector"
            )
        if self.order == "tome" and self.positions != "compact":
            raise MethodError("tome: order=tome has no original positions; use positions=compact")

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        if self.chain[0] is not self:
            return self.chain[0].needs
        return ("vision_keys",) if self.metric == "clip_keys" else ()

    @property
    def chain(self) -> tuple[PruningMethod, ...]:
        """The method itself, or the one that works in the tower."""
        if self.placement == "projector":
            return (self,)
        names = [f.name for f in dataclasses.fields(ToMeInTower)]
        return (ToMeInTower(**{name: getattr(self, name) for name in names}),)

    def keep(self, image: ImageTokens) -> Selection:
        return super().keep(image) if self.chain[0] is self else self.chain[0].keep(image)

    def select(self, view: View, k: int) -> Selection:
        metric = view.signal("vision_keys") if self.metric == "clip_keys" else None
        merged = merge_tokens(view.features, k, metric=metric, per_round=self.per_round)
        slots = merged.representative
        # order=tome: the i-th slot takes the i-th token of the list.
        slots = torch.sort(slots).values if self.order == "tome" else slots
        return Selection(slots, merged.features)

    def cost(self, shape: SelectionShape) -> int:
        """(n / 2)^2 d per round on n tokens."""
        if self.chain[0] is not self:
            return self.chain[0].cost(shape)
        total = 0
        for n, kept in zip(shape.views, shape.kept, strict=True):
            for q in merge_rounds(n, kept, self.per_round):
                total += (n // 2) * (n - n // 2) * shape.width
                n -= q
        return total
