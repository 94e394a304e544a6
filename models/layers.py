"""Inside the language model: tokens are dropped in front of a layer, later layers follow."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vtprune.methods import LayerSignals, PruningMethod, Selection
from vtprune.models.batch import Prompts
from vtprune.models.errors import PruningUnsupported
from vtprune.models.families import Family
from vtprune.models.layer_signals import RowReading
from vtprune.models.packing import pack_left, places
from vtprune.models.run import PruningRun
from vtprune.models.signals import Heard, sources
from vtprune.models.stage import Stage, Step, lowered


@dataclass
class Choosing:
    """A prefill whose layers choose tokens.

    Attributes:
        plans: per row, visual tokens entering every layer.
        counts: per row, visual tokens alive; ``lengths``: all tokens alive.
        visual, text: bool ``[B, L]`` visual tokens, and text after the first picture; ``n_text``
            how many per row.
        rank, place: int64 ``[B, L]`` rank among the visual tokens, among all tokens of the prompt.
        heard: the attention of the layer before the next drop.
        embeddings: what entered layer 0, if the method reads it.
    """

    prompts: Prompts
    plans: list[tuple[int, ...]]
    counts: list[int]
    lengths: list[int]
    visual: Tensor
    text: Tensor
    n_text: list[int]
    entered: list[int] = field(default_factory=list)
    heard: Heard | None = None
    embeddings: Tensor | None = None

    @functools.cached_property
    def rank(self) -> Tensor:
        return self.visual.long().cumsum(1) - 1

    def due(self, layer: int) -> bool:
        """Tokens are dropped in front of ``layer``."""
        return layer > 0 and any(plan[layer] < plan[layer - 1] for plan in self.plans)


class Layers:
    """The part of a method that acts inside the language model."""

    def __init__(self, family: Family, part: PruningMethod, compact: bool, run: PruningRun) -> None:
        self.family, self.part, self.compact, self.run = family, part, compact, run
        #: what the part reads comes from: attention of the layer before, what entered layer 0, ...
        self.sources = sources(frozenset(part.needs), "language")

    def plan(self, prompts: Prompts, stage: Stage, counts: list[int]) -> Choosing:
        """Schedules of the rows, for the visual tokens that enter layer 0."""
        depth, part = len(self.family.layers), self.part
        plans = [part.checked_schedule(depth, n) for n in counts]  # type: ignore[attr-defined]
        if any(plan and plan[0] < n for plan, n in zip(plans, counts, strict=True)):
            raise PruningUnsupported(f"{part.name}: layer 0 has no attention before it")
        visual = prompts.visual
        # Once from the prompt: what survives of the pictures does not say where they began.
        text = prompts.valid & ~visual & (visual.long().cumsum(1) > 0)
        lengths = (prompts.valid & ~visual).sum(1).tolist()
        device = stage.valid.device
        return Choosing(
            prompts,
            plans,
            list(counts),
            [n + text_n for n, text_n in zip(counts, lengths, strict=True)],
            visual.to(device),
            text.to(device),
            text.sum(1).tolist(),
            list(counts),
        )

    def drop(
        self, layer: int, step: Step, choosing: Choosing, hidden: Tensor, given: tuple
    ) -> Tensor:
        """``hidden [B, n, d]`` without the tokens that go; the chain has a stage more."""
        started, chain, device = self.run.clock(), step.chain, hidden.device
        before = chain.stages[-1] = chain.stages[-1].on(device)
        choosing.visual, choosing.text = choosing.visual.to(device), choosing.text.to(device)
        visual = choosing.visual.gather(1, before.prompt) & before.valid
        keep, rewrites = before.valid.clone(), []
        rotation = step.rotation(before, hidden, given)
        for row, n in enumerate(choosing.counts):
            count = choosing.plans[row][layer]
            if count >= n:
                continue
            mine = places(visual[row], n)
            ranks = choosing.rank.to(device)[row][before.prompt[row, mine]]
            reading = self._reading(layer, row, mine, step, choosing, hidden, rotation)
            picked = self._pick(layer, ranks, count, choosing.prompts.records[row], reading)
            kept = mine[picked.indices]
            keep[row, mine] = False
            keep[row, kept] = True
            if picked.features is not None:
                rewrites.append((torch.full_like(kept, row), kept, picked.features))
            choosing.counts[row] = count
            choosing.lengths[row] -= n - count
        stage = self._stage(layer, before, keep, choosing)
        if rewrites:
            rows, slots, vectors = zip(*rewrites, strict=True)
            stage.rewrite = (torch.cat(rows), torch.cat(slots), torch.cat(vectors))
        if self.compact:
            lowered(choosing.prompts.valid.to(device), stage)
        chain.stages.append(stage)
        choosing.heard = None
        seconds = (self.run.clock() - started) / len(choosing.prompts.records)
        for record in choosing.prompts.records:
            record.selection_seconds += seconds
        return stage.apply(hidden)

    def _stage(self, layer: int, before: Stage, keep: Tensor, choosing: Choosing) -> Stage:
        order, valid = pack_left(keep, max(choosing.lengths))
        entry = order if before.entry is None else before.entry.gather(1, order)
        full = min(choosing.lengths) == max(choosing.lengths)
        return Stage(layer, order, before.prompt.gather(1, order), entry, valid, full)

    def _pick(
        self, layer: int, ranks: Tensor, count: int, record: Any, reading: RowReading
    ) -> Selection:
        signals = LayerSignals(
            layer=layer - 1,
            n_layers=len(self.family.layers),
            alive=ranks,
            n_visual=record.visual_tokens,
            _signal=reading.signal,
        )
        picked = self.part.checked_select(signals, count)  # type: ignore[attr-defined]
        alive = torch.zeros(record.visual_tokens, dtype=torch.bool, device=ranks.device)
        kept = ranks[picked.indices]
        record.stages.append((layer, alive.index_fill(0, kept, True)))
        if picked.features is not None:
            record.rewrites[layer] = (record.visual.to(kept.device)[kept], picked.features.detach())
        return picked

    def _reading(
        self,
        layer: int,
        row: int,
        mine: Tensor,
        step: Step,
        choosing: Choosing,
        hidden: Tensor,
        rotation: tuple,
    ) -> RowReading:
        stage, entry = step.chain.stages[-1], step.chain.stages[0].on(hidden.device)
        text, n_text, device = choosing.text[row], choosing.n_text[row], hidden.device
        heard, embeddings = choosing.heard, choosing.embeddings
        inside = choosing.visual[row][entry.prompt[row]] & entry.valid[row]
        return RowReading(
            family=self.family,
            layer=layer,
            hidden=hidden[row],
            valid=stage.valid[row],
            mine=mine,
            text=places(text[stage.prompt[row]] & stage.valid[row], n_text),
            tapped=None if heard is None else heard.row(row),
            rotation=tuple(r.to(device).expand(len(hidden), -1, -1)[row] for r in rotation),
            positions=step.positions(stage)[row],
            embeddings=None if embeddings is None else embeddings[row].to(device),
            image_columns=places(inside, choosing.entered[row]),
            text_columns=places(text[entry.prompt[row]] & entry.valid[row], n_text),
        )
