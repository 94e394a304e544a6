"""SparseVLM: the question's own tokens rate the image, and what goes is partly recycled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from vtprune.methods import ops
from vtprune.methods.base import (
    LABELLED_TOKENS,
    LayerMethod,
    LayerSignals,
    MethodError,
    Selection,
    SelectionShape,
    choice,
    in_range,
    n_keep,
)
from vtprune.methods.fitprune import fit_to_mean
from vtprune.methods.registry import register

#: tokens kept after each pruned layer, by the label of the published tables, of 576 tokens
PRESET_TOKENS = LABELLED_TOKENS
PRESETS = {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)}
PRESETS_PLUS = {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)}


class Recycled(NamedTuple):
    """Deleted tokens ``order [q]`` that are merged, ``centres [c]`` among them, the centre each
    one joins ``assignment [q]``, and the merged tokens ``features [c, d]``."""

    order: Tensor
    centres: Tensor
    assignment: Tensor
    features: Tensor


def rater_scores(image: Tensor, text: Tensor) -> Tensor:
    """``[Q]`` how much image embeddings ``[V, d]`` turn to each of the text embeddings ``[Q, d]``.

    Raters are the text tokens above the mean of these scores.
    """
    return (image @ text.mT).softmax(dim=-1).mean(dim=0)


def relevance(rows: Tensor, raters: Tensor) -> Tensor:
    """``[V]`` attention from raters, mean over heads and raters; rows ``[H, Q, V]``."""
    return rows[:, raters].mean(dim=(0, 1))


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
        rows: ``[H, Q, V]``; decay: ``[Q, V]``.
    """
    corrected = rows[:, raters] / decay[raters]
    strongest = ops.top_k(corrected.sum(dim=(1, 2)), min(heads, len(rows)))
    return corrected[strongest].mean(dim=(0, 1))


def recycled_counts(n_deleted: int, share: float = 0.3) -> tuple[int, int]:
    """How many deleted tokens are merged, and into how many."""
    merged = min(n_deleted, int(share * n_deleted) + 1)
    return merged, merged // 10 + 1 if merged else 0


def recycle(
    hidden: Tensor, score: Tensor, deleted: Tensor, clusters: int, share: float
) -> Recycled:
    """Merge the best of the ``deleted`` tokens by density peaks of ``hidden [V, d]``.

    A token's density falls with the squared distances to its ``clusters`` nearest; centres are
    tokens dense and far from denser ones; each token joins the nearest centre.
    """
    count, _ = recycled_counts(len(deleted), share)
    order = deleted[ops.top_k(score[deleted], max(count, clusters))]
    x = hidden[order]
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") / x.shape[1] ** 0.5
    near = distance.sort(dim=-1).values[:, :clusters]
    density = (-near.square().mean(dim=-1)).exp()
    denser = density[None, :] > density[:, None]
    gap = distance.masked_fill(~denser, torch.inf).amin(dim=-1)
    gap = torch.where(denser.any(dim=-1), gap, distance.max())
    place = ops.top_k(gap * density, clusters)
    assignment = distance[:, place].argmin(dim=-1)
    assignment[place] = torch.arange(clusters, device=x.device)
    by_centre = torch.argsort(assignment, stable=True)
    lengths = torch.bincount(assignment, minlength=clusters)
    sums = torch.segment_reduce(x[by_centre], "sum", lengths=lengths, axis=0)
    return Recycled(order, order[place], assignment, sums / (lengths[:, None] + 1e-6))


def split_budget(n_visual: int, total: int, share: float = 0.3) -> tuple[int, int]:
    """Kept and merged tokens that make ``total`` of ``n_visual`` together."""
    for kept in range(total - 1, 0, -1):
        clusters = recycled_counts(n_visual - kept, share)[1]
        if kept + clusters <= total:
            return kept, total - kept
    return total, 0


@register("sparsevlm")
@dataclass(frozen=True, kw_only=True)
class SparseVLM(LayerMethod):
    """At three layers keep the visual tokens that the question's tokens attend to.

    Raters are the text tokens that the image resembles most at the input of the model. Part of
    what is deleted is merged into a few tokens, which follow the kept ones. Source: "SparseVLM:
    Visual Token Sparsification for Efficient Vision-Language Model Inference" (arXiv 2410.04417),
    first release. Deviations: the release's random noise in densities is zero; only the raters'
    rows are computed. The paper's rank-adaptive ratios and layers are not in the release.

    ``nominal`` takes counts by the label of the published tables, which process more tokens than
    they say (64: 82.3 on average). Otherwise ``ratio_mode=mean`` blends neighbouring presets until
    the mean over layers is met, ``local`` scales the last preset to the fraction kept at the end.

    Attributes:
        layers: 0-based layers after which tokens are dropped, in a model of ``depth`` layers.
        nominal: None, or 192, 128, 96, 64.
        raters: ``text`` (signals ``text_rows [H, Q, V]``, ``text_embeddings [Q, d]`` and
            ``image_embeddings [V, d]``), or ``last``, the last prompt token alone.
        recycle: share of the deleted tokens that is merged.
        redecide: choose again at every decoding step instead of once during prefill.
    """

    positions: Literal["original", "compact"] = "compact"
    layers: tuple[int, ...] = (2, 6, 15)
    depth: int = 32
    nominal: int | None = None
    raters: Literal["text", "last"] = "text"
    recycle: float = 0.3
    redecide: bool = False

    knobs: ClassVar[Mapping[str, tuple[Any, ...]]] = {"layers": ((2, 4, 8), (1, 2, 4))}
    title = "SparseVLM"
    paper = "arXiv:2410.04417"
    query_aware = True
    merges = True
    presets: ClassVar[Mapping[int, tuple[int, ...]]] = PRESETS

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        super().__post_init__()
        in_range(self, "depth", 1, whole=True)
        in_range(self, "recycle", 0.0, 1.0)
        choice(self, "raters", ("text", "last"))
        self._check_nominal(list(self.presets))
        if len(self.layers) != len(self.presets[64]) or list(self.layers) != sorted(self.layers):
            raise MethodError(f"{self.name}: layers={self.layers} must be three rising layers")

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        if self.raters == "last":
            return ("last_row", "hidden")
        return ("text_rows", "text_embeddings", "image_embeddings", "hidden")

    def _merges(self) -> bool:
        return self.recycle > 0

    def boundaries(self, n_layers: int) -> list[int]:
        """Layers at whose input tokens are dropped."""
        found = [round((layer + 1) * n_layers / self.depth) for layer in self.layers]
        found = [max(b, s) for s, b in enumerate(found, start=1)]
        if len(set(found)) < len(found) or found[-1] >= n_layers:
            raise MethodError(f"{self.name}: three stages do not fit {n_layers} layers")
        return found

    def max_mean_ratio(self, n_layers: int) -> float:
        """Largest mean removal over ``n_layers`` layers."""
        return 1 - self.boundaries(n_layers)[0] / n_layers

    def _totals(self, preset: tuple[int, ...], n_visual: int) -> list[int]:
        """Visual tokens after each stage, merged ones included."""
        alive, totals = n_visual, []
        for count in preset:
            kept = min(max(1, round(count * n_visual / PRESET_TOKENS)), alive - 1)
            merged = recycled_counts(alive - kept, self.recycle)[1] if self._merges() else 0
            alive = min(alive, kept + merged)
            totals.append(alive)
        return totals

    def schedule(self, n_layers: int, n_visual: int) -> tuple[int, ...]:
        stages = self.boundaries(n_layers)

        def curve(preset: tuple[int, ...]) -> list[float]:
            after = [n_visual, *self._totals(preset, n_visual)]
            return [after[sum(layer >= b for b in stages)] / n_visual for layer in range(n_layers)]

        if self.nominal is not None:
            left = curve(self.presets[self.nominal])
        elif self.ratio_mode == "mean":
            presets = [curve(p) for p in self.presets.values()]
            left = fit_to_mean(presets, self.ratio, full=stages[0], name=self.name)
        else:
            scale = (1 - self.ratio) * PRESET_TOKENS / self.presets[64][-1]
            left = curve(tuple(min(PRESET_TOKENS, scale * n) for n in self.presets[64]))
        return tuple(n_keep(n_visual, 1 - share, self.rounding) for share in left)

    def score(self, signals: LayerSignals) -> Tensor:
        if self.raters == "last":
            return self._cast(signals.signal("last_row")).mean(dim=0)
        return relevance(self._cast(signals.signal("text_rows")), self.rated_by(signals))

    def rated_by(self, signals: LayerSignals) -> Tensor:
        """Text tokens whose attention counts, as places in the text after the image."""
        image = self._cast(signals.signal("image_embeddings"))
        scores = rater_scores(image, self._cast(signals.signal("text_embeddings")))
        return torch.nonzero(scores > scores.mean()).squeeze(1)

    def select(self, signals: LayerSignals, k: int) -> Tensor | Selection:
        score = self.score(signals)
        kept, clusters = split_budget(len(score), k, self.recycle) if self._merges() else (k, 0)
        chosen = ops.top_k(score, kept).sort().values
        if not clusters:
            return chosen
        free = torch.ones(len(score), dtype=torch.bool, device=score.device)
        free[chosen] = False
        hidden = self._cast(signals.signal("hidden"))
        deleted = torch.nonzero(free).squeeze(1)
        merged = recycle(hidden, score, deleted, clusters, self.recycle)
        # Merged tokens come after the kept ones: the list fills the places of kept and centres.
        places = torch.cat([chosen, merged.centres]).sort().values
        return Selection(places, torch.cat([hidden[chosen], merged.features]))

    def cost(self, shape: SelectionShape) -> int:
        """In each pruned layer raters, their rows (all text at most), and the clustering."""
        text, total = shape.sequence[0] - shape.visual[0] - shape.before, 0
        rating = shape.visual[0] * text * shape.width if self.raters == "text" else 0
        rows = text if self.raters == "text" else 1
        pairs = zip(shape.visual, shape.visual[1:], shape.sequence, strict=False)
        for now, after, length in pairs:
            if after < now:
                total += rating + rows * length * shape.attention_width
                if self._merges():
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

    Attributes:
        heads: heads averaged; 14 in the release, whatever the model has.
        rope_base: base of the model's rotary embedding.
        least_decay: lower bound of the factor, relative to its value at distance 0.
    """

    positions: Literal["original", "compact"] = "original"
    recycle: float = 0.0
    heads: int = 14
    rope_base: float = 10000.0
    least_decay: float = 0.01

    title = "SparseVLM+"
    merges = False
    presets: ClassVar[Mapping[int, tuple[int, ...]]] = PRESETS_PLUS

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "heads", 1, whole=True)
        in_range(self, "rope_base", 1.0, low_open=True)
        in_range(self, "least_decay", 0.0, 1.0, low_open=True)

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return super().needs if self.raters == "last" else (*super().needs, "text_distance")

    def score(self, signals: LayerSignals) -> Tensor:
        if self.raters == "last":
            rows = self._cast(signals.signal("last_row"))[:, None]
            one = rows.new_ones(1, rows.shape[-1])
            return decayed_relevance(rows, torch.zeros(1, dtype=torch.long), one, self.heads)
        head_dim = signals.signal("keys").shape[-1]
        decay = rotary_decay(signals.signal("text_distance"), head_dim, self.rope_base)
        decay = decay.clamp(min=self.least_decay * head_dim**0.5)
        rows = self._cast(signals.signal("text_rows"))
        return decayed_relevance(rows, self.rated_by(signals), decay, self.heads)
