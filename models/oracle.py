"""The independent check: the same model at full length, dropped tokens made invisible.

Shares no code with the pruning runtime on purpose. Given the records of a pruned run, hooks on the
decoder layers edit nothing but the attention mask (and, where a method renumbers or merges, the
rotary positions and the recorded slots), so equal logits mean the pruned run is right.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.models import cache as kv
from vtprune.models.record import SampleRecord


@contextlib.contextmanager
def masked(model: nn.Module, records: Sequence[SampleRecord]) -> Iterator[None]:
    """Inside, ``model`` runs unpruned while layer i sees only what ``records`` kept at layer i.

    Args:
        model: Hugging Face VLM with ``model.model.language_model.layers``.
        records: one per row of the batch that will be generated from.
    """
    oracle = _Oracle(model, list(records))
    hooks = [oracle.lm.register_forward_pre_hook(oracle.note, with_kwargs=True)]
    for number, layer in enumerate(oracle.lm.layers):
        hook = oracle.make_hook(number)
        hooks.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


class _Oracle:
    """What the language model is told, forward by forward; ``note`` runs before its layers do."""

    valid: Tensor  # bool [B, L]: prompt columns without padding
    positions: Tensor  # ids of the columns of this forward

    def __init__(self, model: Any, records: list[SampleRecord]) -> None:
        self.lm = model.model.language_model
        self.records = records

    def note(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        embeds = kwargs["inputs_embeds"]
        rows, width = embeds.shape[:2]
        cache = kv.given(kwargs)
        past = 0 if cache is None else cache.get_seq_length()
        if past == 0:
            mask = kwargs.get("attention_mask")
            self.valid = (
                torch.ones(rows, width, dtype=torch.bool) if mask is None else mask.bool().cpu()
            )
        ids = kwargs.get("position_ids")
        if ids is None:
            ids = torch.arange(past, past + width).expand(rows, -1)
        self.positions = ids

    def kept(self, layer: int) -> Tensor:
        """bool [B, L]: prompt columns visible at ``layer``."""
        keep = torch.zeros_like(self.valid)
        for row, record in enumerate(self.records):
            columns = torch.nonzero(self.valid[row]).squeeze(1)
            visible = torch.ones(len(columns), dtype=torch.bool)
            mask = None
            for start, alive in record.stages:
                if start <= layer:
                    mask = alive
            if mask is not None:
                visible[record.visual[~mask]] = False
            keep[row, columns[visible]] = True
        return keep

    def make_hook(self, layer: int) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
            hidden, cache = args[0], kv.given(kwargs)
            past = 0 if cache is None else cache.get_seq_length(layer)
            keep = self.kept(layer)
            if past == 0:
                hidden = self.rewritten(layer, hidden)
            kwargs["attention_mask"] = self.mask(keep, past, hidden)
            self.renumber(keep, past, hidden, kwargs)
            return (hidden, *args[1:]), kwargs

        return hook

    def mask(self, keep: Tensor, past: int, hidden: Tensor) -> Tensor:
        rows, n_query = hidden.shape[:2]
        total = past + n_query
        see = torch.ones(rows, total, dtype=torch.bool)
        see[:, : keep.shape[1]] = keep
        now = torch.arange(past, total)[:, None]
        allowed = (torch.arange(total)[None] <= now)[None] & see[:, None]
        allowed = (allowed | (torch.arange(total)[None] == now)[None])[:, None].to(hidden.device)
        if self.lm.config._attn_implementation == "eager":
            low = torch.finfo(hidden.dtype).min
            return torch.where(allowed, 0.0, low).to(hidden.dtype)
        return allowed

    def rewritten(self, layer: int, hidden: Tensor) -> Tensor:
        for row, record in enumerate(self.records):
            if layer in record.rewrites:
                where, vectors = record.rewrites[layer]
                columns = torch.nonzero(self.valid[row]).squeeze(1)[where]
                hidden = hidden.clone()
                hidden[row, columns.to(hidden.device)] = vectors.to(hidden)
        return hidden

    def renumber(self, keep: Tensor, past: int, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        if not any(record.positions == "compact" for record in self.records):
            return
        gone = (self.valid & ~keep).long().cumsum(1).to(self.positions.device)
        less = gone if past == 0 else gone[:, -1:]
        ids = self.positions.expand(len(hidden), -1) - less
        kwargs["position_embeddings"] = self.lm.rotary_emb(hidden, position_ids=ids)
