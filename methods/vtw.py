"""VTW: from some layer on the language model goes on without any visual token."""

from __future__ import annotations

from dataclasses import dataclass

from vtprune.methods.counts import LABELLED_TOKENS
from vtprune.methods.errors import MethodError
from vtprune.methods.layers import LayerMethod
from vtprune.methods.options import option
from vtprune.methods.registry import register


@register("vtw")
@dataclass(frozen=True, kw_only=True)
class VTW(LayerMethod):
    """Withdraw all visual tokens at the input of layer ``K``.

    Source: "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid
    Inference" (arXiv 2405.05803). The release finds ``K`` on calibration samples as the first layer
    whose withdrawal changes the next-token distribution little; here it follows from the ratio.

    ``ratio_mode=mean``: ``K`` is the whole number of layers nearest to ``(1 - ratio)`` of the
    depth, so that only multiples of one layer can be met exactly. ``ratio_mode=local``: ``K`` as
    given, whatever the ratio. ``nominal``: the layers whose mean over 576 tokens is that label
    (270: 15 of 32, 288: 16 of 32 or 20 of 40).
    """

    nominal: int | None = option(
        None, "null | label: K such that so many of 576 tokens are processed on average",
        low=1, below=LABELLED_TOKENS,
    )  # fmt: skip
    K: int = option(
        16, "ratio_mode=local: layers that see the visual tokens; published 15 or 16 of 32", low=1
    )

    title = "VTW"
    paper = "arXiv:2405.05803"
    needs = ()

    def schedule(self, n_layers: int, n_visual: int) -> tuple[int, ...]:
        share = 1 - self.ratio if self.nominal is None else self.nominal / LABELLED_TOKENS
        local = self.ratio_mode == "local" and self.nominal is None
        full = self.K if local else round(share * n_layers)
        if not 1 <= full < n_layers:
            raise MethodError(
                f"vtw: withdrawal after {full} of {n_layers} layers; between 1 and {n_layers - 1} "
                f"are possible, a mean removal of {1 / n_layers:.3f} to {1 - 1 / n_layers:.3f}"
            )
        return (n_visual,) * full + (0,) * (n_layers - full)
