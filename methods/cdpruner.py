"""CDPruner: a determinantal point process over tokens, conditioned on the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtprune.methods.base import SelectionShape, View, choice
from vtprune.methods.crops import CropMethod
from vtprune.methods.registry import register


def question_relevance(similarity: Tensor) -> Tensor:
    """Relevance in about [0, 1] from cosines between patches and question, any shape.

    The sign is reversed: patch tokens of the layer used anti-correlate with the pooled text. The
    extremes are those of all crops of the image together.
    """
    against = -similarity
    low, high = against.min(), against.max()
    return (against - low + 1e-6) / (high - low).clamp(min=1e-6)


class _CosineRows:
    """Rows of the cosine matrices of ``x [B, N, d]``, formed when asked for.

    Together with a row come those of the tokens that are likely to be asked for next: a block of
    rows costs little more than one, since either reads all of ``x``.
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x
        # Rows are scaled when they are there: a normalised copy of x would cost more than they do.
        norm = torch.linalg.vector_norm(x, dim=-1)
        self.inverse = torch.where(norm > 0, norm.reciprocal(), 0.0)
        self.crop = torch.arange(len(x), device=x.device)[:, None]
        self.there = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        self.rows: list[dict[int, Tensor]] = [{} for _ in x]  # token -> [N]

    def __call__(self, wanted: Tensor, likely: Tensor, block: int) -> Tensor:
        """Rows ``[B, N]`` of the tokens ``wanted [B, 1]``; ``likely [B, N]``: larger is sooner.

        What is not there yet comes with the ``block - 1`` likeliest others.
        """
        tokens = wanted[:, 0].tolist()
        if any(token not in rows for token, rows in zip(tokens, self.rows, strict=True)):
            self._fetch(wanted, likely, min(block, self.x.shape[1]))
        found = [rows[token] for token, rows in zip(tokens, self.rows, strict=True)]
        return found[0][None] if len(found) == 1 else torch.stack(found)

    def _fetch(self, wanted: Tensor, likely: Tensor, block: int) -> None:
        first = likely.masked_fill(self.there, -torch.inf).scatter_(1, wanted, torch.inf)
        top = first.topk(block, dim=1).indices
        self.there.scatter_(1, top, True)
        made = self.x[self.crop, top] @ self.x.mT
        made *= self.inverse.gather(1, top)[:, :, None]
        made *= self.inverse[:, None]
        for rows, tokens, block_rows in zip(self.rows, top.tolist(), made, strict=True):
            rows.update(zip(tokens, block_rows.unbind(), strict=True))


def greedy_dpp(x: Tensor, relevance: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Greedy MAP of the determinantal point process with kernel ``r_i r_j cos(x_i, x_j)``.

    Only the kernel rows of chosen tokens are needed, O(k N d) instead of O(N^2 d). Once the chosen
    tokens span all directions nothing has variance left but rounding, which a release divides by;
    then the process starts afresh on the remaining tokens.

    Args:
        x: ``[B, N, d]``; relevance: ``[B, N]``.

    Returns:
        Chosen tokens ``[B, k]`` in order, and the gain of each, its conditional variance.
    """
    cosines = _CosineRows(x)
    # The first picks have nothing in common and do not tell who is next.
    alone, block = k // 6, 16 if k >= 48 else max(1, k // 16)
    # A cosine with itself is 1: computed, it would decide ties of equal relevance by rounding.
    initial = relevance.square() * (cosines.inverse > 0)
    variance, spent_below = initial.clone(), 1e-4 * initial.amax(dim=1, keepdim=True)
    rows = x.new_empty(len(x), k, x.shape[1])
    order, gains = [], []
    for step in range(k):
        gain, chosen = variance.max(dim=1, keepdim=True)
        if bool((gain <= spent_below).any()):
            _afresh(variance, initial, rows[:, :step], order, gain <= spent_below)
            gain, chosen = variance.max(dim=1, keepdim=True)
        order.append(chosen)
        gains.append(gain)
        if step == k - 1:
            break  # nobody asks what the last one explains
        known, row = rows[:, :step], rows[:, step]
        cosine = cosines(chosen, variance, 1 if step < alone else block)
        torch.mul(cosine, relevance, out=row).mul_(relevance.gather(1, chosen))
        own = known.gather(2, chosen[:, None].expand(-1, step, 1))
        row -= (own.mT @ known)[:, 0]
        # A token without any variance (norm or relevance zero) conditions nothing.
        row *= torch.where(gain > 0, gain, torch.inf).rsqrt()
        variance.addcmul_(row, row, value=-1).scatter_(1, chosen, -torch.inf)
    return torch.cat(order, dim=1), torch.cat(gains, dim=1)


def _afresh(
    variance: Tensor, initial: Tensor, rows: Tensor, order: list[Tensor], spent: Tensor
) -> None:
    """In place: crops ``spent [B, 1]`` forget what their tokens explain, not that they are gone."""
    spent = spent[:, 0]
    rows[spent] = 0
    variance[spent] = initial[spent]
    if order:
        gone = torch.cat(order, dim=1)[spent]
        variance[spent] = variance[spent].scatter(1, gone, -torch.inf)


@register("cdpruner")
@dataclass(frozen=True, kw_only=True)
class CDPruner(CropMethod):
    """Keep tokens that are relevant to the question and unlike each other.

    Source: "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in
    MLLMs" (arXiv 2506.10967). The kernel compares projected tokens; relevance compares patches and
    question in the joint space of the encoder and its text tower (signal ``clip_similarity [N]``:
    cosine). As in the release relevance is negated and its range is taken over all crops of an
    image. Deviations: only the kernel rows of chosen tokens are formed; a question longer than the
    text tower's context is cut off there (the release takes the mean over pieces, the first of
    which then says nothing of the question).

    Attributes:
        relevance: ``clip``; or ``constant``, a plain DPP without the question (the paper's
            ablation), for models whose encoder has no text tower.
        anyres: see :class:`methods.crops.CropMethod`.
    """

    relevance: Literal["clip", "constant"] = "clip"

    title = "CDPruner"
    paper = "arXiv:2506.10967"
    stage: ClassVar[Literal["none", "projector", "vision", "layer"]] = "projector"
    query_aware = True
    example: ClassVar[dict[str, object]] = {"ratio": 0.5, "relevance": "constant"}
    instead: ClassVar[dict[str, str]] = {"clip_similarity": "relevance=constant"}

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self, "relevance", ("clip", "constant"))

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        tile = ("tile_features",) if self.scope == "per_tile" else ()
        return (*(("clip_similarity",) if self.relevance == "clip" else ()), *tile)

    def select(self, view: View, k: int) -> Tensor:
        return self.select_all([view], [k])[0]

    def select_all(self, views: list[View], counts: list[int]) -> list[Tensor]:
        """All views at once: relevance has one range, and crops of one size form one batch."""
        weights = [torch.ones(len(v), device=v.features.device) for v in views]
        if self.relevance == "clip":
            together = question_relevance(torch.cat([v.signal("clip_similarity") for v in views]))
            weights = list(together.split([len(v) for v in views]))
        if len({(len(view), k) for view, k in zip(views, counts, strict=True)}) == 1:
            features = torch.stack([v.features for v in views])
            return list(greedy_dpp(features, torch.stack(weights), counts[0])[0])
        return [
            greedy_dpp(v.features[None], w[None], k)[0][0]
            for v, w, k in zip(views, weights, counts, strict=True)
        ]

    def cost(self, shape: SelectionShape) -> int:
        """k kernel rows and k^2 N / 2 for their orthogonalisation; the text tower is not ours.

        Rows formed ahead come on top, up to three times as many: memory costs more than they do.
        """
        sizes = shape.tile_tokens if self.scope == "per_tile" else shape.views
        return sum(self.count(n) * n * (shape.width + self.count(n) // 2) for n in sizes)


@register("dpp")
@dataclass(frozen=True, kw_only=True)
class PlainDPP(CDPruner):
    """Keep tokens that are unlike each other, by a determinantal point process.

    CDPruner (arXiv 2506.10967) without its question, the ablation that its paper ranks second and
    that needs no text tower. Everything else as in ``cdpruner``.
    """

    relevance: Literal["constant"] = "constant"

    title = "plain DPP"
    paper = "arXiv:2506.10967, ablation"
    query_aware = False

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self, "relevance", ("constant",))
