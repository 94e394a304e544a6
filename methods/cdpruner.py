"""CDPruner: a determinantal point process over tokens, conditioned on the question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vtprune.methods import ops
from vtprune.methods.cost import SelectionShape
from vtprune.methods.crops import CropMethod
from vtprune.methods.diverse import greedy_dpp
from vtprune.methods.options import option
from vtprune.methods.registry import register
from vtprune.methods.views import View


def question_relevance(similarity: Tensor) -> Tensor:
    """Relevance in about [0, 1] from cosines between patches and question, any shape.

    The sign is reversed: patch tokens of the layer used anti-correlate with the pooled text. The
    extremes are those of all crops of the image together.
    """
    against = -similarity
    low, high = against.min(), against.max()
    return (against - low + 1e-6) / (high - low).clamp(min=1e-6)


@register("cdpruner")
@dataclass(frozen=True, kw_only=True)
class CDPruner(CropMethod):
    """Keep tokens that are relevant to the question and unlike each other.

    Source: "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in
    MLLMs" (arXiv 2506.10967). The kernel compares projected tokens; relevance compares patches and
    question in the joint space of the encoder and its text tower (signal ``clip_similarity [N]``:
    cosine). As in the release relevance is negated and its range is taken over all crops of an
    image. Deviation: a question longer than the text tower's context is cut off there (the release
    takes the mean over pieces, the first of which then says nothing of the question).
    """

    relevance: Literal["clip", "constant"] = option(
        "clip", "clip = cosine with the text tower | constant = plain DPP, without the question"
    )

    title = "CDPruner"
    paper = "arXiv:2506.10967"
    stage: ClassVar = "projector"
    query_aware = True
    example: ClassVar[Mapping[str, Any]] = {"ratio": 0.5, "relevance": "constant"}
    instead: ClassVar[Mapping[str, str]] = {"clip_similarity": "relevance=constant"}

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*(("clip_similarity",) if self.relevance == "clip" else ()), *self.tiles)

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
        """All cosines, and k^2 N / 2 to orthogonalise k rows; the text tower is not ours."""
        sizes = self.sizes(shape)
        picks = sum(self.count(n) * n * (self.count(n) // 2) for n in sizes)
        return picks + sum(ops.cosine_pairs(n) for n in sizes) * shape.width


@register("dpp")
@dataclass(frozen=True, kw_only=True)
class PlainDPP(CDPruner):
    """Keep tokens that are unlike each other, by a determinantal point process.

    CDPruner (arXiv 2506.10967) without its question, the ablation that its paper ranks second and
    that needs no text tower. Everything else as in ``cdpruner``.
    """

    relevance: Literal["constant"] = option("constant", "constant = without the question")

    title = "plain DPP"
    paper = "arXiv:2506.10967, ablation"
    query_aware = False
