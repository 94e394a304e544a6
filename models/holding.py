"""A cache that knows which tokens it lacks: the chain of stages belongs to the cache it filled.

The cache object becomes one of a subclass of its own class, which follows reordered rows and
refuses what would silently be wrong: keys added by a forward that does not know the chain.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from vtprune.models.errors import PruningUnsupported
from vtprune.models.stage import Chain


def hold(cache: Any, chain: Chain) -> None:
    """Give ``cache``, which this prefill fills, its chain."""
    cache.__class__ = _pruned(type(cache))
    cache.pruning_chain = chain


def chain_of(cache: Any) -> Chain | None:
    """The chain of the prefill that filled ``cache``, in a pruning context."""
    return getattr(cache, "pruning_chain", None)


@functools.cache
def _pruned(kind: type) -> type:
    return kind if issubclass(kind, _Guard) else type(f"Pruned{kind.__name__}", (_Guard, kind), {})


class _Guard:
    """What a cache with dropped tokens does differently; mixed into its class."""

    pruning_chain: Chain

    def update(self, *args: Any, **kwargs: Any) -> Any:
        chain = self.pruning_chain
        if chain.drops and not chain.live:
            raise PruningUnsupported(
                "this cache was filled while visual tokens were pruned: go on inside the pruning "
                "context that filled it"
            )
        return super().update(*args, **kwargs)  # type: ignore[misc]

    def crop(self, *args: Any, **kwargs: Any) -> None:
        if self.pruning_chain.drops:
            raise PruningUnsupported(
                "a cache filled under pruning cannot be cropped: its layers hold different tokens"
            )
        super().crop(*args, **kwargs)  # type: ignore[misc]

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.__class__ = type(self).__mro__[2]
        del self.pruning_chain

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self.pruning_chain.rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self.pruning_chain.rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        last = self.pruning_chain.last_position
        index = torch.arange(len(last), device=last.device).repeat_interleave(repeats)
        self.pruning_chain.rows(index)
