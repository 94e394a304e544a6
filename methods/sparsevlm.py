"""SparseVLM: the question's own tokens rate the image, and what goes is partly recycled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtprune.methods import ops
from vtprune.methods.cost import SelectionShape
from vtprune.methods.merging import recycle, recycled_counts, split_budget
from vtprune.methods.method import Positions
from vtprune.methods.options import option
from vtprune.methods.registry import register
from vtprune.methods.schedules import PresetStages
from vtprune.methods.views import LayerSignals, Selection

#: tokens kept after each pruned layer, by the label of the published tables, of 576 tokens
PRESETS = {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)}
PRESETS_PLUS = {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)}


def rater_scores(image: Tensor, text: Tensor) -> Tensor:
    """``[Q]`` how much image embeddings ``[V, d]`` turn to each of the text embeddings ``[Q, d]``.

    Raters are the text tokens above the mean of these scores.
    """
    return (image @ text.mT).softmax(dim=-1).mean(dim=0)


def relevance(rows: Tensor, raters: Tensor) -> Tensor:
    """``[V]`` attention from raters (bool ``[Q]``), mean over heads and raters.

    Args:
        rows: ``[H, Q, V]``.
    """
    return (rows.mean(dim=0) * raters[:, None]).sum(dim=0) / raters.sum()


def rotary_decay(distance: Tensor, head_dim: int, base: float = 10000.0) -> Tensor:
    """How rotary embedding alone weighs a distance: the product of two rotated vectors of ones.

    Turns negative at large distances (1707 for 128 dimensions).
    """
    half = head_dim // 2
    frequency = base ** (-torch.arange(half, device=distance.device, dtype=torch.float32) / half)
    angles = distance.float()[..., None] * frequency
    return 2 / head_dim**0.5 * angles.cos().sum(dim=-1)


def decayed_relevance(rows: Tensor, raters: Tensor, decay: Tensor, heads: int) -> Tensor:
    """``[V]`` relevance with the rotary decay divided out, mean over the strongest ``heads``.

    Args:
        rows: ``[H, Q, V]``; raters: bool ``[Q]``; decay: ``[Q, V]``.
    """
    corrected = rows / decay * raters[:, None]
    strongest = ops.top_k(corrected.sum(dim=(1, 2)), min(heads, len(rows)))
    return corrected[strongest].mean(dim=0).sum(dim=0) / raters.sum()


@register("sparsevlm")
@dataclass(frozen=True, kw_only=True)
class SparseVLM(PresetStages):
    """At three layers keep the visual tokens that the question's tokens attend to.

    Raters are the text tokens that the image resembles most at the input of the model. Part of
    what is deleted is merged into a few tokens, which follow the kept ones. Source: "SparseVLM:
    Visual Token Sparsification for Efficient Vision-Language Model Inference" (arXiv 2410.04417),
    first release. Deviations: the release's random noise in densities is zero; only the raters'
    rows are computed. The paper's rank-adaptive ratios and layers are not in the release.

    ``nominal`` takes counts by the label of the published tables, which process more tokens than
    they say (64: 82.3 on average). Otherwise ``ratio_mode=mean`` blends neighbouring presets until
    the mean over layers is met, ``local`` scales the last preset to the fraction kept at the end.

    Raters are the text tokens after the image (signals ``text_rows [H, Q, V]``, ``text_embeddings
    [Q, d]`` and ``image_embeddings [V, d]``), or the last prompt token alone (``raters=last``).
    """

    positions: Positions = "compact"
    nominal: Literal[192, 128, 96, 64] | None = option(
        None, "null | 192 | 128 | 96 | 64: counts by the label of published tables"
    )
    raters: Literal["text", "last"] = option(
        "text", "text = tokens of the question that fit the image | last = the last prompt token"
    )

    title = "SparseVLM"
    paper = "arXiv:2410.04417"
    query_aware = True
    merges = True
    presets: ClassVar[Mapping[int, tuple[int, ...]]] = PRESETS

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        if self.raters == "last":
            return ("last_row", "hidden")
        return ("text_rows", "text_embeddings", "image_embeddings", "hidden")

    def score(self, signals: LayerSignals) -> Tensor:
        if self.raters == "last":
            return signals.signal("last_row").mean(dim=0)
        return relevance(signals.signal("text_rows"), self.rated_by(signals))

    def rated_by(self, signals: LayerSignals) -> Tensor:
        """bool ``[Q]``: the tokens of the text after the image whose attention counts."""
        image, text = signals.signal("image_embeddings"), signals.signal("text_embeddings")
        scores = rater_scores(image, text)
        return scores > scores.mean()

    def select(self, signals: LayerSignals, k: int) -> Tensor | Selection:
        score = self.score(signals)
        kept, clusters = split_budget(len(score), k, self.recycle) if self.recycle else (k, 0)
        chosen = self.ranked(score, signals, kept)
        if not clusters:
            return chosen
        chosen, hidden = chosen.sort().values, signals.signal("hidden")
        deleted = ops.others(len(score), chosen)
        merged = recycle(hidden, score, deleted, clusters, self.recycle)
        # Merged tokens come after the kept ones: the list fills the places of kept and centres.
        places = torch.cat([chosen, merged.centres]).sort().values
        return Selection(places, torch.cat([hidden[chosen], merged.features]))

    def cost(self, shape: SelectionShape) -> int:
        """In each pruned layer raters, their rows (all text at most), and the clustering."""
        text, total = shape.sequence[0] - shape.visual[0] - shape.before, 0
        rating = shape.visual[0] * text * shape.width if self.raters == "text" else 0
        rows = text if self.raters == "text" else 1
        for layer in shape.drops:
            total += rating + rows * shape.sequence[layer] * shape.attention_width
            if self.recycle:
                now, after = shape.visual[layer : layer + 2]
                kept, _ = split_budget(now, after, self.recycle)
                total += recycled_counts(now - kept, self.recycle)[0] ** 2 * shape.width
        return total


@register("sparsevlm_plus")
@dataclass(frozen=True, kw_only=True)
class SparseVLMPlus(SparseVLM):
    """SparseVLM without recycling, with the decay of rotary embedding divided out.

    Source: second release of SparseVLM (arXiv 2410.04417). The attention of raters is divided by
    what rotary embedding makes of the distance, then the ``heads`` heads with most of it are
    averaged; original positions are kept. Deviation: the factor, which turns negative at large
    distances and would reverse the ranking there, is held above ``least_decay``. With
    ``raters=last`` there is nothing to divide by, only heads are chosen.
    """

    positions: Positions = "original"
    recycle: float = 0.0
    heads: int = option(14, "heads averaged; 14 in the release, whatever the model has", low=1)
    rope_base: float = option(10000.0, "base of the model's rotary embedding", above=1)
    least_decay: float = option(
        0.01, "lower bound of the factor, relative to its value at distance 0", above=0, high=1
    )

    title = "SparseVLM+"
    merges = False
    presets: ClassVar[Mapping[int, tuple[int, ...]]] = PRESETS_PLUS

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return super().needs if self.raters == "last" else (*super().needs, "text_distance")

    def score(self, signals: LayerSignals) -> Tensor:
        if self.raters == "last":
            rows = signals.signal("last_row")[:, None]
            one = rows.new_ones(1, rows.shape[-1])
            raters = rows.new_ones(1, dtype=torch.bool)
            return decayed_relevance(rows, raters, one, self.heads)
        head_dim = signals.signal("keys").shape[-1]
        decay = rotary_decay(signals.signal("text_distance"), head_dim, self.rope_base)
        decay = decay.clamp(min=self.least_decay * head_dim**0.5)
        rows = signals.signal("text_rows")
        return decayed_relevance(rows, self.rated_by(signals), decay, self.heads)
