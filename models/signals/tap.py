"""What an attention module gives its kernel, heard without materialised attention.

While an :class:`AttentionTap` is open, the function the library looks up for its attention kernel
is wrapped. The wrapper tells queries, keys (after rotary embedding) and values of the registered
modules and calls the kernel as before, so SDPA and flash attention stay in use everywhere.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

from torch import Tensor, nn


class Heard(NamedTuple):
    """One attention: queries ``[B, H, n, dh]``, keys and values ``[B, H_kv, m, dh]``, the scale of
    the logits. Tokens of one entry see each other and nobody else (but for causality)."""

    q: Tensor
    k: Tensor
    v: Tensor
    scaling: float

    def entries(self, start: int, stop: int) -> Heard:
        """Entries ``start:stop`` of the batch."""
        return Heard(self.q[start:stop], self.k[start:stop], self.v[start:stop], self.scaling)

    def row(self, number: int) -> Heard:
        """One entry, without its batch dimension."""
        return Heard(self.q[number], self.k[number], self.v[number], self.scaling)


Listener = Callable[[Heard], None]


class AttentionTap:
    """Context manager: call ``listeners[module](heard)`` at each attention of a module.

    A kernel that takes several sequences in one call, one behind another (flash attention with
    ``cu_seq_lens_q``), is heard as several attentions, one a segment, in order; so a listener never
    sees tokens together that do not attend to each other.

    The lookup table entry is put back on exit, also when taps are nested.
    """

    def __init__(self, listeners: dict[nn.Module, Listener], kernels: set[str]) -> None:
        self._listeners = {id(module): listener for module, listener in listeners.items()}
        self._kernels = kernels
        self._previous: dict[str, Any] = {}

    def __enter__(self) -> AttentionTap:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as table

        if self._listeners:
            for kernel in self._kernels:
                local = table._local_mapping
                self._previous[kernel] = local.get(kernel)
                table[kernel] = self._wrapper(kernel, table.get(kernel))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as table

        for kernel, previous in self._previous.items():
            if previous is None:
                del table[kernel]
            else:
                table[kernel] = previous
        self._previous = {}

    def _wrapper(self, kernel: str, inner: Callable | None) -> Callable:
        def attention(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kw: Any):
            listener = self._listeners.get(id(module))
            if listener is not None:
                heard = Heard(q, k, v, kw.get("scaling") or q.shape[-1] ** -0.5)
                for one in segments(heard, kw.get("cu_seq_lens_q")):
                    listener(one)
            # "eager" has no table entry: every modelling file brings its own function.
            call = inner or sys.modules[type(module).__module__].eager_attention_forward
            return call(module, q, k, v, *args, **kw)

        return attention


def segments(heard: Heard, cuts: Tensor | None) -> list[Heard]:
    """The attention of every sequence between two ``cuts [S + 1]``; one, where there are none."""
    if cuts is None:
        return [heard]
    q, k, v, scaling = heard
    return [
        Heard(q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], scaling)
        for a, b in itertools.pairwise(cuts.tolist())
    ]
