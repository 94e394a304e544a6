"""Keep the foreground, or the background, of an image: the study that motivates G-Prune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vtprune.methods import ops
from vtprune.methods.cost import SelectionShape
from vtprune.methods.options import option
from vtprune.methods.registry import register
from vtprune.methods.tokens import TokenMethod
from vtprune.methods.views import View


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
    and its release lacks it. Source of the mask and order of removal are therefore ours. The signal
    ``fg_mask [N]`` is the share of a token's cell that annotated objects cover (a bool mask is a
    share of 0 or 1).
    """

    provider: Literal["cls_attention", "received_attention", "annotation"] = option(
        "cls_attention",
        "cls_attention | received_attention, without CLS | annotation = signal fg_mask",
    )
    coverage: float = option(
        0.5, "annotation: share of its cell from which a token is foreground", above=0, high=1
    )
    mass: float = option(
        0.5, "attention: share of it that the foreground holds", above=0, high=1
    )

    title = "foreground kept"
    paper = "arXiv:2501.02268, Fig. 1"
    preserved: ClassVar[bool] = True
    without_cls: ClassVar[Mapping[str, Any]] = {"provider": "received_attention"}

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
        draw = ops.seeded_uniform(len(view), self.seed, *view.key).to(view.device)
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
