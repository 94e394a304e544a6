"""DART: keep a few pivots, and of the rest what duplicates them least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vtprune.methods import ops
from vtprune.methods.cost import SelectionShape
from vtprune.methods.counts import Rounding
from vtprune.methods.diverse import least_similar
from vtprune.methods.errors import MethodError
from vtprune.methods.options import option
from vtprune.methods.registry import register
from vtprune.methods.schedules import DropOnce
from vtprune.methods.views import LayerSignals


def key_norms(keys: Tensor) -> Tensor:
    """l1 norm ``[n]`` of cached keys ``[n, heads, dh]``, all heads together."""
    return keys.abs().flatten(1).sum(dim=-1)


#: what the release removes behind layer K, by the label of the published tables
REDUCTIONS = {192: 0.667, 128: 0.778, 64: 0.889}


@register("dart")
@dataclass(frozen=True, kw_only=True)
class DART(DropOnce):
    """Drop once, at the input of layer ``K``, what resembles a few pivot tokens.

    Pivots are the visual and text tokens with the largest keys in layer ``K - 1``. One after
    another they take the visual tokens least similar to them; visual pivots and what is taken
    stay. Source: "Stop Looking for Important Tokens in Multimodal Language Models: Duplication
    Matters More" (arXiv 2502.11494), behaviour of a public port. Deviations: pivots take turns
    image first, largest key first (a port visits them in the order of a hash table); a count that
    does not divide evenly is met exactly, the first pivots taking one more.

    ``nominal`` takes the counts behind the labels of the published tables: a reduction of 0.667,
    0.778 or 0.889, of which every pivot takes a whole share (188, 124 or 60 of 576 tokens behind
    layer 2). Over all layers that is more than the label says: 212.3, 152.3 or 92.3.

    Pivots and tokens are compared by the hidden states after the model's last norm
    (``state=normed``, signals ``normed [V, d]``, ``text_normed [Q, d]``, and ``text_keys
    [Q, heads, dh]``; text means the tokens after the image), or as they are (``hidden``).
    """

    rounding: Rounding = "round_half_even"
    nominal: Literal[192, 128, 64] | None = option(
        None, "null | 192 | 128 | 64: counts by the label of published tables"
    )
    pivot_image: int = option(4, "visual pivots, always kept", low=1)
    pivot_text: int = option(4, "text pivots", low=0)
    state: Literal["normed", "hidden"] = option(
        "normed", "normed = after the model's last norm | hidden (pivot_text=0)"
    )

    title = "DART"
    paper = "arXiv:2502.11494"
    query_aware = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.state == "hidden" and self.pivot_text:
            raise MethodError("dart: state=hidden has no text pivots; use pivot_text=0")

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        text = ("text_normed", "text_keys") if self.pivot_text else ()
        return ("keys", self.state, *text)

    def schedule(self, n_layers: int, n_visual: int) -> tuple[int, ...]:
        if self.nominal is None or self.K >= n_layers:
            return super().schedule(n_layers, n_visual)
        pivots = self.pivot_image + self.pivot_text
        each = int(n_visual * (1 - REDUCTIONS[self.nominal]) / pivots)
        kept = min(n_visual, self.pivot_image + pivots * each)
        return (n_visual,) * self.K + (kept,) * (n_layers - self.K)

    def select(self, signals: LayerSignals, k: int) -> Tensor:
        state = signals.signal(self.state)
        norms = key_norms(signals.signal("keys"))
        image = ops.top_k(norms, min(self.pivot_image, k))
        pivots = [state[image]]
        if self.pivot_text:
            text = key_norms(signals.signal("text_keys"))
            text_state = signals.signal("text_normed")
            pivots.append(text_state[ops.top_k(text, self.pivot_text)])
        pivots = torch.cat(pivots)
        each, more = divmod(k - len(image), len(pivots))
        counts = [each + (p < more) for p in range(len(pivots))]
        taken = torch.zeros(len(state), dtype=torch.bool, device=state.device)
        taken[image] = True
        return torch.cat([image, *least_similar(state, pivots, taken, counts)])

    def cost(self, shape: SelectionShape) -> int:
        """Cosines of the pivots with all visual tokens."""
        pivots = self.pivot_image + self.pivot_text
        return pivots * shape.visual[self.K - 1] * shape.width
