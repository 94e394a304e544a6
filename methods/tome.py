"""Token Merging: similar tokens are averaged instead of dropped."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtprune.methods import ops
from vtprune.methods.base import (
    EncoderMethod,
    ImageTokens,
    MethodError,
    PruningMethod,
    Selection,
    SelectionShape,
    TokenMethod,
    View,
    choice,
    in_range,
)
from vtprune.methods.ops import Merged
from vtprune.methods.registry import register


def merge_rounds(n: int, n_out: int, per_round: int | None = None) -> list[int]:
    """Tokens merged away in each round on the way from ``n`` to ``n_out``.

    A round can remove half of the list at most, ``per_round`` lowers that.
    """
    rounds = []
    while n > n_out:
        rounds.append(min(n - n_out, n // 2, per_round or n))
        n -= rounds[-1]
    return rounds


def merge_tokens(
    x: Tensor, n_out: int, *, metric: Tensor | None = None, per_round: int | None = None
) -> Merged:
    """Bipartite soft matching of ``x [N, d]`` down to ``n_out`` tokens.

    Each round splits the list into even and odd places; every even token finds its most similar
    odd one (cosine of ``metric [N, c]``, by default of the tokens); the most similar pairs are
    merged into the odd token, as means weighted by how many tokens each already stands for. The
    new list holds the unmerged even tokens, most similar first, then the odd ones in order.
    """
    n, device = len(x), x.device
    merged = Merged(x, x.new_ones(n), *(torch.arange(n, device=device) for _ in range(2)))
    metric = x if metric is None else metric
    for q in merge_rounds(n, n_out, per_round):
        merged, metric = merge_round(merged, metric, q)
    return merged


def merge_round(state: Merged, metric: Tensor, q: int) -> tuple[Merged, Tensor]:
    """One round: ``q`` even places are merged into their partners among the odd places."""
    u = ops.unit(metric)
    _, row, partner = ops.best_pairs(u[0::2] @ u[1::2].mT)
    gone, kept, odd = 2 * row[:q], 2 * row[q:], torch.arange(1, len(u), 2, device=u.device)
    order = torch.cat([kept, odd])

    place = torch.empty_like(state.representative)
    place[order] = torch.arange(len(order), device=place.device)
    place[gone] = len(kept) + partner[:q]

    # Sums run over sorted places, in a fixed order: a scatter-add on a GPU would not repeat.
    by_place = torch.argsort(place, stable=True)
    lengths = torch.bincount(place, minlength=len(order))

    def sums(values: Tensor) -> Tensor:
        return torch.segment_reduce(values[by_place], "sum", lengths=lengths, axis=0)

    def mean(values: Tensor) -> Tensor:
        return sums(values * state.size[:, None]) / size[:, None]

    size = sums(state.size)
    features = mean(state.features)
    metric = features if metric is state.features else mean(metric)
    return Merged(features, size, place[state.group], state.representative[order]), metric


@dataclass(frozen=True, kw_only=True)
class ToMeInTower(EncoderMethod):
    """``tome`` with ``placement=vision_encoder``: a few patches in front of every encoder layer.

    Attributes:
        per_round: most patches merged in front of a layer; None = as even as layers allow.
    """

    per_round: int | None = None

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

    Attributes:
        metric: what is compared: the projected tokens (``tokens``), or the head-mean attention
            keys of the encoder's last used layer (``clip_keys``, signal ``vision_keys [N, c]``;
            the mean stands for a merged group, as no layer computes new keys).
        per_round: most tokens merged per round; None = half of those left.
        order: ``spatial`` = tokens in order of position; ``tome`` = in the order the matching
            leaves them in (needs ``positions=compact``).
        placement: ``projector``; or ``vision_encoder``, as in the original: some patches in front
            of every encoder layer, by the head-mean keys of the layer before, with attention that
            weighs a token by its size. CLS takes no part. Merging sits between layers instead of
            between attention and MLP.
    """

    metric: Literal["tokens", "clip_keys"] = "tokens"
    per_round: int | None = None
    order: Literal["spatial", "tome"] = "spatial"
    placement: Literal["projector", "vision_encoder"] = "projector"

    title = "ToMe"
    instead: ClassVar[Mapping[str, str]] = {"merge_slots": "placement=projector"}
    paper = "arXiv:2210.09461"
    merges = True

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self, "metric", ("tokens", "clip_keys"))
        choice(self, "order", ("spatial", "tome"))
        choice(self, "placement", ("projector", "vision_encoder"))
        if self.per_round is not None:
            in_range(self, "per_round", 1, whole=True)
        if self.placement == "vision_encoder" and (self.metric, self.order) != (
            "tokens", "spatial"
        ):  # fmt: skip
            raise MethodError(
                "tome: placement=vision_encoder compares attention keys and keeps spatial order; "
                "metric and order belong to placement=projector"
            )
        if self.order == "tome" and self.positions != "compact":
            raise MethodError("tome: order=tome has no original positions; use positions=compact")

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        if self.merges_in_encoder:
            return ("merge_slots",)
        return ("vision_keys",) if self.metric == "clip_keys" else ()

    @property
    def chain(self) -> tuple[PruningMethod, ...]:
        """The method itself, or the one that works in the tower."""
        if not self.merges_in_encoder:
            return (self,)
        names = [f.name for f in dataclasses.fields(ToMeInTower)]
        return (ToMeInTower(**{name: getattr(self, name) for name in names}),)

    @property
    def merges_in_encoder(self) -> bool:
        return self.placement == "vision_encoder"

    def encoder_plan(self, n_layers: int, n_patches: int) -> list[int]:
        """``plan`` of the part in the tower."""
        return self.chain[0].plan(n_layers, n_patches)

    def encoder_merge(self, state: Merged, keys: Tensor, q: int) -> Merged:
        """``merge`` of the part in the tower."""
        return self.chain[0].merge(state, keys, q)

    def keep(self, image: ImageTokens) -> Selection:
        return self.chain[0].keep(image) if self.merges_in_encoder else super().keep(image)

    def select(self, view: View, k: int) -> Selection:
        metric = view.signal("vision_keys") if self.metric == "clip_keys" else None
        merged = merge_tokens(view.features, k, metric=metric, per_round=self.per_round)
        indices = merged.representative
        if self.order == "tome":
            indices = torch.sort(indices).values  # the i-th slot takes the i-th token of the list
        return Selection(indices, merged.features)

    def cost(self, shape: SelectionShape) -> int:
        """(n / 2)^2 d per round on n tokens."""
        if self.merges_in_encoder:
            return self.chain[0].cost(shape)
        total = 0
        for n, kept in zip(shape.views, shape.kept, strict=True):
            for q in merge_rounds(n, kept, self.per_round):
                total += (n // 2) * (n - n // 2) * shape.width
                n -= q
        return total
