"""Keep the foreground, or the background, of an image: the study that motivates G-Prune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtprune.methods import ops
from vtprune.methods.base import SelectionShape, TokenMethod, View, choice, in_range
from vtprune.methods.registry import register


def attention_foreground(attention: Tensor, mass: float) -> Tensor:
    """bool ``[N]``: the smallest set of tokens that holds ``mass`` of ``attention [N]``."""
    value, order = torch.sort(attention, descending=True, stable=True)
    before = value.cumsum(0) - value
    return torch.zeros_like(order, dtype=torch.bool).scatter(0, order, before < mass * value.sum())


@register("foreground")
@dataclass(frozen=True, kw_only=True)
class Foreground(TokenMethod):
    """Drop background tokens at random; only when none is left, foreground tokens at random.

    Fig. 1 of the G-Prune paper (arXiv 2501.02268) plots such a method, but neither says where its
    foreground comes from nor what happens when it is smaller than the number of tokens to keep,
    and its release lacks it. Source of the mask and order of removal are therefore ours.

    Attributes:
        provider: ``annotation`` = the signal ``fg_mask`` ``[N]``, share of a token's cell that
            annotated objects cover (a bool mask is a share of 0 or 1); ``cls_attention`` = the
            tokens that the encoder's CLS token attends to; ``received_attention`` = those that all
            its tokens attend to, for encoders without CLS.
        coverage: share of its cell from which a token is foreground (``annotation``).
        mass: share of the attention that the foreground holds (``cls_attention``).
    """

    provider: Literal["cls_attention", "received_attention", "annotation"] = "cls_attention"
    coverage: float = 0.5
    mass: float = 0.5

    title = "foreground kept"
    paper = "arXiv:2501.02268, Fig. 1"
    preserved: ClassVar[bool] = True
    without_cls: ClassVar[Mapping[str, str]] = {"provider": "received_attention"}

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self, "provider", ("cls_attention", "received_attention", "annotation"))
        in_range(self, "coverage", 0.0, 1.0, low_open=True)
        in_range(self, "mass", 0.0, 1.0, low_open=True)

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("fg_mask",) if self.provider == "annotation" else (self.provider,)

    def foreground(self, view: View) -> Tensor:
        """bool ``[N]``: tokens of the view that show the main objects."""
        if self.provider == "annotation":
            return view.signal("fg_mask").float() >= self.coverage
        attention = view.signal(self.provider).float()
        return attention_foreground(attention.reshape(len(view), -1).mean(dim=1), self.mass)

    def score(self, view: View) -> Tensor:
        draw = ops.seeded_uniform(len(view), self.seed, *view.key).to(view.features.device)
        return draw + (self.foreground(view) == self.preserved)

    def cost(self, shape: SelectionShape) -> int:
        """Reading the provider's attention; an annotation costs nothing."""
        return 0 if self.provider == "annotation" else shape.encoder_attention(self.provider)


@register("background")
@dataclass(frozen=True, kw_only=True)
class Background(Foreground):
    """Drop foreground tokens at random; only when none is left, background tokens at random.

    The counterpart of ``foreground`` in Fig. 1 of the G-Prune paper (arXiv 2501.02268), with the
    same gaps filled in the same way.
    """

    title = "background kept"
    preserved: ClassVar[bool] = False
