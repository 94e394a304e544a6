"""Vision features of an image computed once for all cells of a job, in the accuracy pass only.

What is remembered is a whole call of the image encoder: same inputs, bit for bit, same model on the
same device, same batch. So what comes back is what the call would have computed, and answers cannot
differ. Cells that need more of the encoder (attention rows, say) than is remembered run it again.

Cells of a job ask the same batches in the same order, so a cache that drops the oldest entry would
always have dropped the one asked for next: it keeps what came first and stops when it is full.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vtprune.harness.request.identity import Cell, canonical_json

if TYPE_CHECKING:  # a sweep opens this before it knows whether anything is left to compute
    import torch
    from torch import Tensor

_BULKY = ("last_hidden_state", "hidden_states", "attentions")  # nothing behind the encoder reads it


@dataclass
class _Entry:
    """One call: its output, and what was seen of the encoder: names in ``needs``."""

    output: Any
    needs: frozenset[str]
    projector_input: Tensor | None
    projector_output: Tensor | None
    attention: dict[str, Any]
    states: dict[str, Any]


@dataclass
class VisionCache:
    """Remembered encoder calls of one model and benchmark; at most ``limit`` bytes."""

    limit: int
    hits: int = 0
    misses: int = 0
    scope: str = ""
    held: int = 0
    entries: dict[str, _Entry] = field(default_factory=dict)

    def enter(self, scope: str) -> None:
        """Begin a cell; what another model or benchmark left behind is forgotten."""
        if scope != self.scope:
            self.entries.clear()
            self.scope, self.held = scope, 0
        self.hits = self.misses = 0

    def encode(
        self, inner: Any, args: tuple, kwargs: dict[str, Any], capture: Any, needs: frozenset[str]
    ) -> Any:
        """The encoder's output, ``capture`` filled as the hooks on the encoder would.

        Args:
            inner: the encoder; run within the hooks that fill ``capture``.
            args, kwargs: of the call.
            capture: a ``models.signals.VisionCapture``, empty.
            needs: what the hooks are there to see.
        """
        name = _digest((args, kwargs))
        entry = self.entries.get(name)
        if entry is not None and needs <= entry.needs:
            self.hits += 1
            return _replay(entry, capture, _device((args, kwargs)))
        self.misses += 1
        output = inner(*args, **kwargs)
        self._remember(name, entry, output, capture, needs)
        return output

    def _remember(
        self, name: str, old: _Entry | None, output: Any, capture: Any, needs: frozenset[str]
    ) -> None:
        entry = _Entry(
            _copy(_without_bulk(output)),
            needs | (old.needs if old else frozenset()),
            _copy(capture.projector_input),
            _copy(capture.projector_output),
            _copy(dict(capture.attention)),
            _copy(dict(capture.states)),
        )
        if old is not None:
            entry.attention = {**old.attention, **entry.attention}
            entry.states = {**old.states, **entry.states}
            if entry.projector_input is None:
                entry.projector_input = old.projector_input
                entry.projector_output = old.projector_output
        grown = _size(entry) - (_size(old) if old else 0)
        if self.held + grown <= self.limit:
            self.held += grown
            self.entries[name] = entry


_open: VisionCache | None = None


@contextlib.contextmanager
def shared(gigabytes: float) -> Iterator[VisionCache]:
    """Cells that run inside the block share their vision features."""
    global _open
    before, _open = _open, VisionCache(int(gigabytes * 2**30))
    try:
        yield _open
    finally:
        _open = before


def enter(cell: Cell) -> VisionCache | None:
    """The cache for a cell that begins; None outside of :func:`shared`."""
    if _open is not None:
        bench, data = cell.identity["bench"]["name"], cell.identity["data"]
        _open.enter(canonical_json([cell.identity["model"], bench, data]))
    return _open


def current() -> VisionCache | None:
    """The cache of the block we are in."""
    return _open


def _replay(entry: _Entry, capture: Any, device: torch.device) -> Any:
    capture.projector_input = _copy(entry.projector_input, device)
    capture.projector_output = _copy(entry.projector_output, device)
    capture.attention.update(_copy(entry.attention, device))
    capture.states.update(_copy(entry.states, device))
    return _copy(entry.output, device)


def _without_bulk(output: Any) -> Any:
    kept = {k: v for k, v in output.items() if k not in _BULKY}
    return type(output)(**kept)


def _copy(value: Any, device: torch.device | str = "cpu") -> Any:
    """A copy that shares no memory with the original, tensors on ``device``."""
    if _is_tensor(value):
        return value.detach().to(device, copy=True)
    if hasattr(value, "_make"):  # a named tuple
        return value._make(_copy(v, device) for v in value)
    if isinstance(value, (list, tuple)):
        return type(value)(_copy(v, device) for v in value)
    if hasattr(value, "to_tuple"):  # an output class of transformers
        return type(value)(**{k: _copy(v, device) for k, v in value.items()})
    if isinstance(value, dict):
        return {k: _copy(v, device) for k, v in value.items()}
    return value


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "detach")


def _tensors(value: Any) -> Iterator[Tensor]:
    if _is_tensor(value):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)


def _size(entry: _Entry) -> int:
    return sum(t.numel() * t.element_size() for t in _tensors(list(vars(entry).values())))


def _device(value: Any) -> torch.device:
    return next(_tensors(value)).device


def _digest(value: Any) -> str:
    digest = hashlib.blake2b(digest_size=20)
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    """Add everything about a call that its result can depend on."""
    if _is_tensor(value):
        digest.update(f"{value.dtype}{tuple(value.shape)}{value.device}".encode())
        import torch

        raw = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(raw.numpy().data)
    elif isinstance(value, dict):
        for key in sorted(value):
            digest.update(f"{key}=".encode())
            _feed(digest, value[key])
    elif isinstance(value, (list, tuple)):
        digest.update(f"[{len(value)}]".encode())
        for one in value:
            _feed(digest, one)
    else:
        digest.update(repr(value).encode())
