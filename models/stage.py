"""Where every column of every layer comes from: a chain of stages, one chain a prefill.

* *prompt*: columns of the full input ids, batch padding included;
* *slot*: columns of the sequence that enters a layer, after tokens were dropped.

Layer 0 is a stage like any other. Rows that keep fewer tokens than others are padded on the left,
which masks then hide. The chain belongs to the cache that the prefill filled, see ``holding``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vtprune.models.families import CapturedImage, Family
from vtprune.models.packing import attention_mask, gather_rows, unmasked
from vtprune.models.record import SampleRecord


@dataclass
class Stage:
    """The sequence that enters ``layer`` and those after it, up to the next stage.

    Attributes:
        order: int64 ``[B, M]`` slots of the stage before (for layer 0: prompt columns) that are
            this one's; None: all of them.
        prompt: int64 ``[B, M]`` prompt column of every slot.
        entry: int64 ``[B, M]`` slot of layer 0 of every slot; None at layer 0.
        valid: bool ``[B, M]``, False in padding slots; ``full``: there are none.
        less: int64 ``[B, M]`` how much lower the positions are, if they are renumbered.
        shift: int64 ``[B]`` the same for all later tokens.
        rewrite: rows, slots of the stage before, and the vectors ``[k, d]`` that were put there.
    """

    layer: int
    order: Tensor | None
    prompt: Tensor
    entry: Tensor | None
    valid: Tensor
    full: bool
    less: Tensor | None = None
    shift: Tensor | None = None
    rewrite: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def width(self) -> int:
        return self.valid.shape[1]

    def on(self, device: torch.device) -> Stage:
        """The stage with its tensors on ``device``, for models spread over several."""
        if self.valid.device == device:
            return self
        moved: dict[str, Any] = {
            k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(self).items()
        }
        if self.rewrite is not None:
            rows, slots, vectors = self.rewrite
            moved["rewrite"] = (rows.to(device), slots.to(device), vectors.to(device))
        return Stage(**moved)

    def apply(self, x: Tensor, grown: int = 0) -> Tensor:
        """``x [B, N + grown, d]`` of the stage before as it enters this one."""
        if self.rewrite is not None:
            rows, slots, vectors = self.rewrite
            x = x.index_put((rows, slots), vectors.to(x.dtype))
        if self.order is None:
            return x
        return gather_rows(x, with_tail(self.order, x.shape[1] - grown, grown))


@dataclass
class Chain:
    """The stages of one prefill, and what following forwards need to know of it.

    Attributes:
        owner: number of the context that made it.
        width: prompt columns, padding included.
        last_position: int64 ``[B]`` largest position id of every prompt.
        said: ids that went through the model, for a turn that repeats them; None: unknown.
        ids, images, records, helper: of prompts that go on without a cache; ``helper``: not asked
            for by the user.
        live: a forward is following it right now.
    """

    owner: int
    width: int
    last_position: Tensor
    stages: list[Stage]
    said: list[Tensor] | None = None
    ids: Tensor | None = None
    images: list[list[CapturedImage]] = field(default_factory=list)
    records: list[SampleRecord] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    foreground: Any = None
    questions: Any = None
    beams: int = 1
    helper: bool = False
    live: bool = False
    _shifts: tuple[list[int], Tensor] | None = None

    @property
    def drops(self) -> bool:
        """Tokens were dropped somewhere: nobody else can continue this cache."""
        return len(self.stages) > 1 or self.stages[0].order is not None

    @property
    def gone(self) -> int:
        """Columns by which the cache of layer 0 is shorter than what went through the model."""
        return self.width - self.stages[0].width

    def at(self, layer: int) -> Stage:
        """The stage in force at ``layer``."""
        return next(stage for stage in reversed(self.stages) if stage.layer <= layer)

    def shifts(self, device: torch.device) -> tuple[list[int], Tensor]:
        """Layers where positions sink anew, and by how much ``[S, B]`` from there on."""
        if self._shifts is None or self._shifts[1].device != device:
            moved = [(one.layer, one.shift) for one in self.stages[1:] if one.shift is not None]
            layers = [layer for layer, _ in moved]
            self._shifts = (layers, torch.stack([shift.to(device) for _, shift in moved]))
        return self._shifts

    def rows(self, index: Tensor) -> None:
        """Follow a cache whose rows were reordered, repeated or left out."""
        self.said = self._shifts = None
        self.last_position = self.last_position[index.to(self.last_position.device)]
        for stage in self.stages:
            for name, value in vars(stage).items():
                if isinstance(value, Tensor):
                    setattr(stage, name, value[index.to(value.device)])


@dataclass
class Step:
    """One forward along a chain: masks and rotations are made once for all layers of a stage.

    Attributes:
        base: ``[B, n]`` position ids of the columns that the caller gave.
        grown: columns behind the prompt, those of this forward included.
        tail: bool ``[B, grown]`` which of them are visible; None: all.
        decoding: the prompt is in the cache; else it is in ``base``.
    """

    family: Family
    chain: Chain
    base: Tensor
    grown: int = 0
    tail: Tensor | None = None
    decoding: bool = False
    _made: dict[tuple[str, int, torch.device], Any] = field(default_factory=dict)

    def stage(self, layer: int, device: torch.device) -> Stage:
        found = self.chain.at(layer)
        return self._once("stage", found.layer, device, lambda: found.on(device))

    def mask(self, stage: Stage, hidden: Tensor) -> Tensor | None:
        """The kernel's mask for ``hidden [B, q, d]`` in this stage."""
        make: Callable[[], Tensor | None] = lambda: self._mask(stage, hidden)  # noqa: E731
        return self._once("mask", stage.layer, hidden.device, make)

    def _mask(self, stage: Stage, hidden: Tensor) -> Tensor | None:
        n_query, kernel = hidden.shape[1], self.family.kernel
        full = stage.full and self.tail is None
        if full and unmasked(n_query, stage.width + self.grown, kernel):
            return None
        tail = self.tail
        if tail is None:
            tail = stage.valid.new_ones(len(stage.valid), self.grown)
        valid = torch.cat([stage.valid, tail.to(stage.valid.device)], dim=1)
        return attention_mask(valid, n_query, kernel, hidden.dtype, full)

    def positions(self, stage: Stage) -> Tensor:
        """``[B, q]`` position ids of the columns computed in this stage."""
        base = self.base.to(stage.valid.device)
        if self.decoding:
            return base if stage.shift is None else base - stage.shift[:, None]
        picked = base.gather(1, self.columns(stage))
        if stage.less is None or stage.shift is None:
            return picked
        less = torch.cat([stage.less, stage.shift[:, None].expand(-1, self.grown)], dim=1)
        return picked - less

    def columns(self, stage: Stage) -> Tensor:
        """int64 ``[B, n]`` of a stage's slots, the columns that the caller gave."""
        return with_tail(stage.prompt, self.chain.width, self.grown)

    def rotation(self, stage: Stage, hidden: Tensor, given: tuple[Tensor, ...]) -> tuple:
        """cos and sin of this stage's columns; ``given`` are those of layer 0."""
        if stage.shift is not None and self.decoding:
            return self._decoding_rotations(hidden)[stage.layer]
        if self.decoding or (stage.shift is None and stage.entry is None):
            return given
        made: Callable[[], tuple] = lambda: self._rotation(stage, hidden, given)  # noqa: E731
        return self._once("rotation", stage.layer, hidden.device, made)

    def _rotation(self, stage: Stage, hidden: Tensor, given: tuple[Tensor, ...]) -> tuple:
        if stage.shift is not None or stage.entry is None:
            return self.family.rotary(hidden, self.positions(stage))
        entry = with_tail(stage.entry, self.chain.stages[0].width, self.grown)
        rows = (r.to(hidden.device).expand(len(hidden), -1, -1) for r in given)
        return tuple(gather_rows(r, entry) for r in rows)

    def _decoding_rotations(self, hidden: Tensor) -> dict[int, tuple[Tensor, ...]]:
        """Of all stages at once, by their layers: stages differ by what positions sink alone."""

        def make() -> dict[int, tuple[Tensor, ...]]:
            layers, shifts = self.chain.shifts(hidden.device)
            rows = self.base.to(hidden.device)[None] - shifts[:, :, None]
            turned = self.family.rotary(hidden, rows.flatten(0, 1))
            stages = [one.unflatten(0, rows.shape[:2]).unbind(0) for one in turned]
            return dict(zip(layers, zip(*stages, strict=True), strict=True))

        return self._once("rotations", -1, hidden.device, make)

    def _once(self, what: str, layer: int, device: torch.device, make: Callable[[], Any]) -> Any:
        key = (what, layer, device)
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def with_tail(order: Tensor, width: int, grown: int) -> Tensor:
    """``order [B, M]`` into ``width`` columns, and the ``grown`` columns behind those."""
    if not grown:
        return order
    tail = torch.arange(width, width + grown, device=order.device).expand(len(order), -1)
    return torch.cat([order, tail], dim=1)


def lowered(prompt_valid: Tensor, stage: Stage) -> None:
    """Renumber the slots of a stage: positions sink by the number of dropped tokens before."""
    alive = torch.zeros_like(prompt_valid).scatter(1, stage.prompt, stage.valid)
    gone = (prompt_valid & ~alive).long().cumsum(1)
    stage.less, stage.shift = gone.gather(1, stage.prompt), gone[:, -1]
