"""A prompt that walks through the decoder layer by layer, dropping visual tokens on request.

Calibration needs what a forward pass cannot give: to look at one layer's attention over many
samples, decide, and only then go on to the next layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtprune.models import cache as kv
from vtprune.models.errors import PruningUnsupported
from vtprune.models.families import Family
from vtprune.models.packing import attention_mask
from vtprune.models.signals import AttentionTap, Heard, head_max_columns


class _Reached(Exception):
    """Raised by the hook that stops a forward pass in front of the first decoder layer."""


class LayerReplay:
    """One prompt in front of the first layer; see ``methods.fitprune_search.Replay``.

    Args:
        hidden: ``[1, n, d]`` hidden states entering the first layer.
        rotation: cos and sin of its rotary positions.
        visual: bool ``[n]``.
    """

    def __init__(
        self, family: Family, hidden: Tensor, rotation: tuple[Tensor, Tensor], visual: Tensor
    ) -> None:
        self.family = family
        self._hidden, self._rotation, self._visual = hidden, rotation, visual
        self._layer = 0

    def fresh(self) -> LayerReplay:
        """The same prompt in front of the first layer again (for a replay not yet moved)."""
        return LayerReplay(self.family, self._hidden, self._rotation, self._visual)

    @property
    def n_visual(self) -> int:
        return int(self._visual.sum())

    @property
    def n_text(self) -> int:
        return int((~self._visual).sum())

    @torch.inference_mode()
    def attend(self) -> tuple[Tensor, Tensor]:
        """Run the next layer; attention every visual token receives, maximum over heads.

        Returns:
            ``cross [V]``, mean over the text rows after the image, and ``self [V]``, mean over the
            visual rows alive.
        """
        layer = self.family.layers[self._layer]
        heard: list[Heard] = []
        valid = torch.ones_like(self._visual)
        kernel, n = self.family.kernel, len(valid)
        listener = {layer.self_attn: heard.append}
        with AttentionTap(listener, {kernel}):
            out = layer(
                self._hidden,
                attention_mask=attention_mask(valid[None], n, kernel, self._hidden.dtype),
                position_embeddings=self._rotation,
                position_ids=None,
                **{kv.ARGUMENT: None},
                use_cache=False,
            )
        self._hidden = out[0] if isinstance(out, tuple) else out
        self._layer += 1
        q, k, _, scaling = heard[0]
        mine = torch.nonzero(self._visual).squeeze(1)
        text = torch.nonzero(~self._visual).squeeze(1)
        text = text[text > mine[0]]
        cross = head_max_columns(q[0], k[0], scaling, valid, text, mine) / max(1, len(text))
        own = head_max_columns(q[0], k[0], scaling, valid, mine, mine) / len(mine)
        return cross, own

    def keep(self, indices: Tensor) -> None:
        """Go on with these of the visual tokens alive only (sorted)."""
        mine = torch.nonzero(self._visual).squeeze(1)
        stays = ~self._visual
        stays[mine[indices]] = True
        self._hidden = self._hidden[:, stays]
        cos, sin = self._rotation
        self._rotation = cos[..., stays, :], sin[..., stays, :]
        self._visual = self._visual[stays]


@torch.inference_mode()
def start_replay(family: Family, inputs: dict[str, Any]) -> LayerReplay:
    """Encode one prompt (batch of one, no padding) up to the first decoder layer.

    Raises:
        PruningUnsupported: several rows, padding, or no image.
    """
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    if len(ids) != 1 or (mask is not None and not bool(mask.all())):
        raise PruningUnsupported("a replay takes one prompt without padding")
    visual = family.modality_codes(ids)[0] > 0
    if not bool(visual.any()):
        raise PruningUnsupported("a replay needs a prompt with an image")
    seen: dict[str, Any] = {}

    def stop(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.update(hidden=args[0], rotation=kwargs["position_embeddings"])
        raise _Reached

    handle = family.layers[0].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        family.model(**inputs, use_cache=False)
    except _Reached:
        pass
    finally:
        handle.remove()
    return LayerReplay(family, seen["hidden"], seen["rotation"], visual)
