"""Merging inside the vision tower: patches are merged between its layers, then put back in place.

The tower runs on fewer and fewer patches. Behind the projector the survivors return to the places
of their representatives on the full grid, so that the library packs and cuts as ever; the empty
places are dropped before the language model.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.methods import EncoderMethod
from vtprune.methods.ops import Merged
from vtprune.models.errors import PruningUnsupported
from vtprune.models.families import Family
from vtprune.models.signals import AttentionTap, Heard


class EncoderMerging:
    """One encoder call under a part that merges between its layers.

    Attributes:
        slots: after the call, bool ``[crops, P]``: places that hold a token.
        plan: patches merged away in front of encoder layers 1, 2, ...
    """

    def __init__(self, family: Family, method: EncoderMethod) -> None:
        self.method = method
        self.layers, self.last = family.vision_layers(), family.feature_layer()
        self.projector = family.projector()
        self.kernel = self.layers[0].self_attn.config._attn_implementation
        if "flash" in self.kernel:
            raise PruningUnsupported(
                f"{method.name}: attention weighted by token size needs sdpa or eager in the tower"
            )
        self.slots: Tensor | None = None
        self._states: list[Merged] = []
        self._keys = torch.empty(0)  # of the layer before, head mean
        self.plan: list[int] = []
        self._patches = 0

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Hooks in place for one encoder call."""
        listeners = {
            self.layers[number].self_attn: self._hear for number in range(self.last)
        }
        with contextlib.ExitStack() as stack:
            stack.enter_context(AttentionTap(listeners, {self.kernel}))
            for number in range(1, len(self.layers)):
                hook = functools.partial(self._before, number)
                handle = self.layers[number].register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
            stack.callback(self.projector.register_forward_hook(self._put_back).remove)
            yield

    def _hear(self, heard: Heard) -> None:
        self._keys = heard.k.float().mean(1)

    def _before(self, number: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        if number == 1:
            self._start(hidden)
        if number <= self.last and (q := self.plan[number - 1]):
            hidden = self._merge(hidden, q)
        if self._patches + 1 == hidden.shape[1]:
            return None
        sizes = torch.stack([state.size for state in self._states])
        weight = torch.cat([torch.ones_like(sizes[:, :1]), sizes], dim=1).log()
        mask = weight[:, None, None, :].to(hidden.dtype)
        if self.kernel != "eager":
            mask = mask.expand(-1, 1, hidden.shape[1], -1)
        rest = {k: v for k, v in kwargs.items() if k not in ("hidden_states", "attention_mask")}
        return (hidden, mask), rest

    def _start(self, hidden: Tensor) -> None:
        self._patches = hidden.shape[1] - 1
        self.plan = self.method.plan(self.last, self._patches)
        place = torch.arange(self._patches, device=hidden.device)
        size = torch.ones(self._patches, device=hidden.device)
        self._states = [Merged(crop[1:], size, place, place) for crop in hidden]

    def _merge(self, hidden: Tensor, q: int) -> Tensor:
        rows = []
        for crop, (state, keys) in enumerate(zip(self._states, self._keys, strict=True)):
            now = state._replace(features=hidden[crop, 1:].float())
            self._states[crop] = self.method.merge(now, keys[1:], q)
            rows.append(self._states[crop].features.to(hidden.dtype))
        return torch.cat([hidden[:, :1], torch.stack(rows)], dim=1)

    def _put_back(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        places = torch.stack([state.representative for state in self._states])
        grid = output.new_zeros(len(output), self._patches, output.shape[-1])
        grid.scatter_(1, places[:, :, None].expand_as(output), output)
        self.slots = torch.zeros(grid.shape[:2], dtype=torch.bool, device=output.device)
        self.slots.scatter_(1, places, True)
        return grid
