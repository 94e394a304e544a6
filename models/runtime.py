"""Pruning inside an unmodified Hugging Face VLM, by removable hooks on its instance.

Four places are hooked: ``get_image_features`` (what the tokens are), the multimodal model (ids, and
whether this is prefill), the language model (drop before its first layer), and every decoder layer
(drop inside). Coordinates:

* *prompt*: columns of the full input ids, batch padding included;
* *entry*: columns of the sequence entering layer 0, after a :class:`TokenMethod` dropped tokens;
* *slot*: columns of the sequence entering one layer, after a :class:`LayerMethod` dropped more.

Rows that keep fewer tokens than others are padded on the left, which masks then hide.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.methods.base import ImageTokens, LayerSignals, PruningMethod, Selection
from vtprune.models import refuse, signals
from vtprune.models.annotation import token_coverage
from vtprune.models.batch import (
    Batch,
    Slots,
    beams_per_sample,
    by_name,
    extended,
    extends,
    images_per_row,
    once,
    row_positions,
    view_sizes,
)
from vtprune.models.encode import Encoding
from vtprune.models.errors import PruningUnsupported
from vtprune.models.families import CapturedImage, Family
from vtprune.models.layer_signals import RowReading
from vtprune.models.packing import attention_mask, gather_rows, pack_left
from vtprune.models.record import SampleRecord, Unreduced
from vtprune.models.run import PruningRun
from vtprune.models.signals import AttentionTap, Heard
from vtprune.models.text_tower import TextTower, question_of

# Contexts open per model, innermost last: only that one acts, the others wait.
_OPEN: weakref.WeakKeyDictionary[nn.Module, list[Runtime]] = weakref.WeakKeyDictionary()


class Runtime:
    """The hooks of one context."""

    def __init__(
        self,
        family: Family,
        method: PruningMethod,
        run: PruningRun,
        text_tower: TextTower | None = None,
    ) -> None:
        self.family, self.method, self.run, self.text_tower = family, method, run, text_tower
        acting = [part for part in method.chain if part.ratio > 0 and method.ratio > 0]
        #: parts before the language model, and the one inside it
        self.token_parts = [part for part in acting if part.place in ("encoder", "tokens")]
        self.layer_method: Any = next((p for p in acting if p.place == "layers"), None)
        self.token_needs = frozenset(name for part in self.token_parts for name in part.needs)
        if any(getattr(part, "scope", "") == "per_tile" for part in self.token_parts):
            self.token_needs |= {"tile_features"}
        layers = self.layer_method
        self.layer_needs = frozenset(layers.needs) if layers is not None else frozenset()
        self.encoding = Encoding(family, method, self.token_needs, run._input, lambda: run.shared)
        self.batch: Batch | None = None
        self._encoded: dict[str, Any] | None = None
        self._core_signature = inspect.signature(family.core.forward)
        self._lm_signature = inspect.signature(family.language_model.forward)

    # -- attach and restore ---------------------------------------------------------------------

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks in place for the duration; the model is as before afterwards, errors included."""
        family = self.family
        refuse.model_and_method(family, self.method, self.text_tower)
        stack = _OPEN.setdefault(family.model, [])
        stack.append(self)
        with contextlib.ExitStack() as undo:
            undo.callback(self._leave, stack)
            undo.enter_context(self.encoding.attached(lambda: self._waiting))
            undo.enter_context(self._language_tap())
            hooks = [(family.core, self._before_core), (family.language_model, self._before_lm)]
            if self.layer_method is not None:
                hooks += [
                    (layer, functools.partial(self._before_layer, number))
                    for number, layer in enumerate(family.layers)
                ]
            for module, hook in hooks:
                undo.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            yield

    def _leave(self, stack: list[Runtime]) -> None:
        stack.remove(self)
        if not stack:
            _OPEN.pop(self.family.model, None)
        self.batch = None

    @property
    def _waiting(self) -> bool:
        stack = _OPEN.get(self.family.model)
        return not stack or stack[-1] is not self

    def _language_tap(self) -> contextlib.AbstractContextManager:
        if "attention" not in signals.sources(self.layer_needs, "language"):
            return contextlib.nullcontext()
        listeners = {
            layer.self_attn: functools.partial(self._hear_layer, number)
            for number, layer in enumerate(self.family.layers)
        }
        return AttentionTap(listeners, {self.family.kernel})

    # -- hook 2: ids, and whether this is prefill -----------------------------------------------

    def _before_core(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        if self._waiting:
            return None
        named = by_name(self._core_signature, args, kwargs)
        cache = named.get("past_key_values")
        if cache is None or cache.get_seq_length() == 0:
            self._begin_prefill(module, named, cache)
            return None
        return self._begin_decode(named, cache)

    def _begin_prefill(self, module: nn.Module, named: dict[str, Any], cache: Any) -> None:
        ids = named.get("input_ids")
        if ids is None:
            raise PruningUnsupported("prompts given as inputs_embeds cannot be pruned")
        if self.method.ratio > 0 and module.training:
            raise PruningUnsupported("pruning is for inference; call model.eval() first")
        if self.method.ratio > 0 and getattr(cache, "is_compileable", False):
            raise PruningUnsupported("static caches have one length for all layers; use dynamic")
        before = self.batch
        cacheless = cache is None and not named.get("use_cache")
        if getattr(self.method, "redecide", False) and not cacheless:
            raise PruningUnsupported(
                f"{self.method.name}: redecide=true recomputes the prompt at every step; "
                "generate with use_cache=False"
            )
        grows = cacheless and before is not None and before.cacheless and extends(before, ids)
        self.encoding.new_forward()
        self._encoded = named.get("mm_encoder_outputs")
        codes = self.family.modality_codes(ids)
        names = before.sample_ids if grows else self._names(ids, named.get("attention_mask"))
        self.batch = Batch(
            input_ids=ids,
            cacheless=cacheless,
            codes=codes,
            visual=codes > 0,
            sample_ids=names,
            grows=grows,
            repeats=grows and not getattr(self.method, "redecide", False),
        )
        if self.batch.repeats:
            self.batch.records = before.records
        self.batch.foreground = before.foreground if grows else self.run._foreground
        self.batch.questions = before.questions if grows else self.run._questions
        self.run._foreground = self.run._questions = None

    def _names(self, ids: Tensor, mask: Tensor | None) -> list[str]:
        given, self.run._sample_ids = self.run._sample_ids, None
        rows = ids.shape[0]
        if given is None:
            # Without padding, so that a prompt has one name in every batch.
            real = [row if mask is None else row[mask[i].bool()] for i, row in enumerate(ids)]
            return [hashlib.sha256(r.cpu().numpy().tobytes()).hexdigest()[:16] for r in real]
        if rows % len(given):
            raise PruningUnsupported(f"{len(given)} sample ids for a batch of {rows} rows")
        beams = rows // len(given)
        return [name for name in given for _ in range(beams)]

    def _begin_decode(self, named: dict[str, Any], cache: Any) -> Any:
        batch = self.batch
        if batch is None or batch.entry_valid is None:
            return None
        batch.prefilling = False
        ids = named.get("input_ids")
        if ids is not None and ids.shape[1] > 1 and bool(self.family.modality_codes(ids).any()):
            raise PruningUnsupported("chunked prefill cannot be pruned: an image came late")
        if not (batch.shortened or batch.layers) or named.get("position_ids") is not None:
            return None
        # The library would count from the shortened cache.
        done = cache.get_seq_length() - batch.entry_valid.shape[1]
        steps = torch.arange(done + 1, done + 1 + ids.shape[1], device=ids.device)
        named["position_ids"] = batch.last_position[:, None] + steps
        return (), named

    # -- hook 3: before the language model ------------------------------------------------------

    def _before_lm(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        if self._waiting or self.batch is None:
            return None
        named = by_name(self._lm_signature, args, kwargs)
        if not self.batch.prefilling:
            return self._continue_lm(named)
        return self._enter_lm(named)

    def _enter_lm(self, named: dict[str, Any]) -> Any:
        batch, embeds = self.batch, named["inputs_embeds"]
        mask = named.get("attention_mask")
        if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
            raise PruningUnsupported("only 2-D attention masks can be pruned")
        valid = torch.ones_like(batch.visual) if mask is None else mask.bool()
        batch.visual = batch.visual & valid
        batch.images = images_per_row(
            self.encoding.pictures(self._encoded),
            list(self.family.encoders),
            batch.codes * batch.visual,
        )
        positions = row_positions(named.get("position_ids"), embeds)
        batch.last_position = positions.amax(1)
        if not batch.repeats:
            self._new_records(valid)
        keep, embeds = self._select_before_lm(valid, embeds)
        batch.images = []
        batch.shortened = bool((keep != valid).any())
        if self.layer_method is not None:
            self._plan_layers(keep)
        width = batch.visual.shape[1]
        batch.prompt = torch.arange(width, device=embeds.device).expand(len(embeds), -1)
        batch.entry_valid, batch.entry_visual = valid, batch.visual
        batch.entry_positions = positions
        batch.shift = torch.zeros_like(batch.last_position)
        if not batch.shortened:
            return self._unshortened(named, embeds)
        return self._shorten(named, embeds, valid, keep, positions)

    def _unshortened(self, named: dict[str, Any], embeds: Tensor) -> Any:
        self._start_slots(embeds)
        if embeds is named["inputs_embeds"]:
            return None
        named["inputs_embeds"] = embeds
        return (), named

    def _shorten(
        self, named: dict[str, Any], embeds: Tensor, valid: Tensor, keep: Tensor, positions: Tensor
    ) -> Any:
        batch = self.batch
        order, batch.entry_valid = pack_left(keep)
        batch.prompt = order
        batch.entry_visual = batch.visual.gather(1, order) & batch.entry_valid
        if self.method.positions == "compact":
            gone = (valid & ~keep).long().cumsum(1)
            positions = positions - gone
            batch.shift = gone[:, -1]
        given = named.get("position_ids")
        if given is None or given.dim() == 2:
            batch.entry_positions = positions.gather(1, order)
            named["position_ids"] = batch.entry_positions
        else:
            # A leading text row only serves the library's packing detection.
            planes = given[1:] if given.shape[0] == 4 else given
            named["position_ids"] = planes.gather(2, order.expand(planes.shape[0], -1, -1))
            batch.entry_positions = positions.gather(1, order)
        named["inputs_embeds"] = gather_rows(embeds, order)
        # Never None: without a mask, gapped positions are taken for packed sequences.
        named["attention_mask"] = batch.entry_valid.long()
        self._start_slots(named["inputs_embeds"])
        return (), named

    def _start_slots(self, embeds: Tensor) -> None:
        batch = self.batch
        if "entry" in signals.sources(self.layer_needs, "language"):
            batch.embeddings = embeds
        columns = torch.arange(batch.entry_valid.shape[1], device=batch.entry_valid.device)
        batch.slots = Slots(
            columns.expand(len(batch.entry_valid), -1), batch.entry_valid, batch.shift
        )

    def _new_records(self, valid: Tensor) -> None:
        batch, depth = self.batch, len(self.family.layers)
        beams = beams_per_sample(batch.sample_ids)
        asked = self._asked()
        for row, name in enumerate(batch.sample_ids):
            rank = (valid[row].long().cumsum(0) - 1)[batch.visual[row]]
            record = SampleRecord(
                sample_id=name,
                prompt_length=int(valid[row].sum()),
                visual=rank.cpu(),
                n_layers=depth,
                positions=self.method.positions,
                crops=sum(image.layout.n_tiles for image in batch.images[row]),
                grids=tuple((i.layout.n_tiles, *i.layout.patch_grid) for i in batch.images[row]),
                merged=next((i.merged for i in batch.images[row]), ()),
                unreduced=asked[row],
            )
            if (asked[row].planned if asked[row] else record.grids) != record.grids:
                raise refuse.unprepared(self.method)
            batch.records.append(record)
            if row % beams == 0 and not batch.grows:
                self.run.records.append(record)

    def _asked(self) -> list[Unreduced | None]:
        """Per row, what was asked before the method changed the input; None: it does not."""
        rows, given = len(self.batch.sample_ids), self.run._unreduced
        if self.run._input is None:
            return [None] * rows
        if given is None and not any(self.batch.images):
            return [None] * rows
        if given is None or rows % len(given):
            raise refuse.unprepared(self.method)
        return [one for one in given for _ in range(rows // len(given))]

    def _select_before_lm(self, valid: Tensor, embeds: Tensor) -> tuple[Tensor, Tensor]:
        """bool ``[B, L]`` tokens that enter layer 0, and the embeddings, merged slots rewritten."""
        parts, batch = self.token_parts, self.batch
        if not parts:
            return valid, embeds
        started, keep = self.run.clock(), valid.clone()
        source, changed = embeds, None
        for row, images in enumerate(batch.images):
            question = self._question(row) if images else None
            columns, offset, views = torch.nonzero(batch.visual[row]).squeeze(1), 0, []
            alive = torch.zeros(len(columns), dtype=torch.bool, device=embeds.device)
            slots, vectors = [], []
            for number, image in enumerate(images):
                mine = columns[offset : offset + len(image.layout)]
                key = (batch.sample_ids[row], number)
                tokens = ImageTokens(
                    source[row, mine],
                    image.layout,
                    key,
                    once(self._signals(row, number, image, question)),
                    image.pack,
                    image.project,
                )
                picked = self.method.keep(tokens)
                alive[offset + picked.indices] = True
                if picked.features is not None:
                    slots.append(mine[picked.indices])
                    vectors.append(picked.features.to(embeds.dtype))
                sizes = view_sizes(image)
                if getattr(parts[0], "scope", "") == "joint":
                    everything = getattr(parts[0], "newline", "") == "candidate"
                    sizes = [len(image.layout) if everything else sum(sizes)]
                views += sizes
                offset += len(image.layout)
            keep[row, columns[~alive]] = False
            if slots:
                changed = embeds.clone() if changed is None else changed
                changed[row, torch.cat(slots)] = torch.cat(vectors)
            self._note_entry(row, alive, views, slots, vectors, valid)
        seconds = (self.run.clock() - started) / max(1, len(batch.images))
        for record in batch.records:
            record.selection_seconds += seconds
        return keep, embeds if changed is None else changed

    def _question(self, row: int) -> Tensor | None:
        """The row's question in CLIP's joint space ``[P]``, if the method asks for it."""
        tower, given = self.text_tower, self.batch.questions
        if tower is None or "clip_similarity" not in self.token_needs:
            return None
        if given is None:
            raise PruningUnsupported(
                f"{self.method.name} reads the question: name it, run.begin(ids, questions=[...])"
            )
        text = given[row // (len(self.batch.visual) // len(given))]
        ids = tower.tokens(question_of(text))
        if not self.batch.repeats:
            patches = sum(i.layout.n_tiles * i.layout.patch_grid[0] * i.layout.patch_grid[1]
                          for i in self.batch.images[row])  # fmt: skip
            self.batch.records[row].signal_macs = tower.macs(ids.shape[1], patches)
        return tower.text(ids)

    def _signals(
        self, row: int, number: int, image: CapturedImage, question: Tensor | None
    ) -> Mapping[str, Any]:
        """What the encoder offers, and what else was given: an annotation, a question."""
        more: dict[str, Any] = {}
        given = self.batch.foreground
        if given is not None:
            mask = given[row // (len(self.batch.visual) // len(given))][number]
            more["fg_mask"] = lambda: token_coverage(mask, image.layout)
        if question is not None:
            features = image.signals["vision_features"]

            def similarity() -> Tensor:
                x = features()
                return (self.text_tower.patches(x) @ question).to(x.device)

            more["clip_similarity"] = similarity
        return {**image.signals, **more}

    def _note_entry(
        self,
        row: int,
        alive: Tensor,
        views: list[int],
        slots: list[Tensor],
        vectors: list[Tensor],
        valid: Tensor,
    ) -> None:
        if self.batch.repeats:
            return
        record = self.batch.records[row]
        record.views = tuple(views)
        if not alive.all():
            record.stages.append((0, alive.cpu()))
        if slots:
            rank = valid[row].long().cumsum(0) - 1
            record.rewrites[0] = (rank[torch.cat(slots)].cpu(), torch.cat(vectors).cpu())

    def _continue_lm(self, named: dict[str, Any]) -> Any:
        batch = self.batch
        if not (batch.shortened or batch.layers):
            return None
        embeds, cache = named["inputs_embeds"], named["past_key_values"]
        grown = cache.get_seq_length() + embeds.shape[1] - batch.entry_valid.shape[1]
        positions = row_positions(named.get("position_ids"), embeds)
        if batch.shortened:
            named["attention_mask"] = extended(batch.entry_valid, grown).long()
            if self.method.positions == "compact":
                positions = positions - batch.shift[:, None]
                named["position_ids"] = positions
        batch.step_positions = positions
        return (), named

    # -- hook 4: before a decoder layer ---------------------------------------------------------

    def _plan_layers(self, keep: Tensor) -> None:
        """Schedules of the rows, for the visual tokens that enter layer 0."""
        depth = len(self.family.layers)
        counts = (self.batch.visual & keep).sum(1).tolist()
        self.batch.plans = [self.layer_method.checked_schedule(depth, n) for n in counts]
        if any(plan and plan[0] < n for plan, n in zip(self.batch.plans, counts, strict=True)):
            raise PruningUnsupported(f"{self.method.name}: layer 0 has no attention before it")

    def _due(self, layer: int) -> bool:
        plans = self.batch.plans
        return plans is not None and layer > 0 and any(p[layer] < p[layer - 1] for p in plans)

    def _hear_layer(self, number: int, heard: Heard) -> None:
        batch = self.batch
        if self._waiting or batch is None or not batch.prefilling or batch.repeats:
            return
        if number + 1 < len(self.family.layers) and self._due(number + 1):
            batch.tapped = heard

    def _before_layer(
        self, number: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        batch = self.batch
        if self._waiting or batch is None:
            return None
        if not batch.prefilling:
            return self._continue_layer(number, args, kwargs)
        hidden = args[0]
        if self._due(number) or batch.layers:
            self._follow(hidden.device)
        if self._due(number):
            rotation = kwargs["position_embeddings"]
            if batch.layers:
                rotation = self._slot_rotation(hidden, rotation)
            hidden = self._drop(number, hidden, rotation)
        elif not batch.layers:
            return None
        batch.layers[number] = batch.slots
        kwargs["attention_mask"] = attention_mask(
            batch.slots.valid, hidden.shape[1], self.family.kernel, hidden.dtype
        )
        kwargs["position_embeddings"] = self._slot_rotation(hidden, kwargs["position_embeddings"])
        # Rotation is applied already; gapped ids would only mislead flash attention.
        kwargs["position_ids"] = None
        return (hidden, *args[1:]), kwargs

    def _follow(self, device: torch.device) -> None:
        """Move the bookkeeping along when a model is spread over several devices."""
        batch = self.batch
        if batch.slots.entry.device == device:
            return
        batch.slots = Slots(*(t.to(device) for t in vars(batch.slots).values()))
        for name in ("entry_visual", "entry_valid", "entry_positions", "prompt", "visual", "shift"):
            setattr(batch, name, getattr(batch, name).to(device))

    def _slot_rotation(self, hidden: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple:
        slots, batch = self.batch.slots, self.batch
        if self.method.positions == "compact":
            gone = self._gone(slots).long().cumsum(1)
            compact = (batch.entry_positions - gone).gather(1, slots.entry)
            return self.family.rotary(hidden, compact)
        rotation = (r.to(hidden.device).expand(len(hidden), -1, -1) for r in rotation)
        return tuple(gather_rows(r, slots.entry) for r in rotation)

    def _gone(self, slots: Slots) -> Tensor:
        """bool ``[B, M]``: valid entry columns that are no longer in ``slots``."""
        alive = torch.zeros_like(self.batch.entry_valid)
        alive.scatter_(1, slots.entry, slots.valid)
        return self.batch.entry_valid & ~alive

    def _continue_layer(self, number: int, args: tuple, kwargs: dict[str, Any]) -> Any:
        batch, slots = self.batch, self.batch.layers.get(number)
        if slots is None:
            return None
        hidden, cache = args[0], kwargs["past_key_values"]
        grown = cache.get_seq_length(number) + hidden.shape[1] - slots.valid.shape[1]
        # Layer 0 ran already and holds this step's keys; both must have grown alike.
        if grown != cache.get_seq_length(0) - batch.entry_valid.shape[1]:
            raise PruningUnsupported("the cache was cropped (assisted decoding?): not supported")
        kwargs["attention_mask"] = attention_mask(
            extended(slots.valid, grown), hidden.shape[1], self.family.kernel, hidden.dtype
        )
        if self.method.positions == "compact":
            less = slots.shift - batch.shift.to(slots.shift.device)
            ids = batch.step_positions.to(less.device) - less[:, None]
            kwargs["position_embeddings"] = self.family.rotary(hidden, ids)
        kwargs["position_ids"] = None
        return args, kwargs

    def _drop(self, layer: int, hidden: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        batch, started = self.batch, self.run.clock()
        slots = batch.slots
        visual = batch.entry_visual.gather(1, slots.entry) & slots.valid
        keep = slots.valid.clone()
        changed = None
        for row in range(len(hidden)):
            mine = torch.nonzero(visual[row]).squeeze(1)
            picked = self._pick(layer, row, mine, hidden, rotation)
            if picked is None:
                continue
            stays = torch.zeros(len(mine), dtype=torch.bool, device=hidden.device)
            stays[picked.indices] = True
            keep[row, mine[~stays]] = False
            if picked.features is not None:
                changed = hidden.clone() if changed is None else changed
                changed[row, mine[picked.indices]] = picked.features.to(hidden.dtype)
            self._note_layer(layer, row, mine, picked)
        hidden = hidden if changed is None else changed
        order, valid = pack_left(keep)
        batch.slots = Slots(slots.entry.gather(1, order), valid, slots.shift)
        if self.method.positions == "compact":
            batch.slots.shift = batch.shift + self._gone(batch.slots).sum(1)
        batch.tapped = None
        seconds = (self.run.clock() - started) / len(batch.records)
        for record in batch.records:
            record.selection_seconds += seconds
        return gather_rows(hidden, order)

    def _pick(
        self, layer: int, row: int, mine: Tensor, hidden: Tensor, rotation: tuple[Tensor, Tensor]
    ) -> Selection | None:
        """Which of the row's alive visual slots ``mine`` stay; None keeps all."""
        batch, count = self.batch, self.batch.plans[row][layer]
        if count >= len(mine):
            return None
        ranks = self._ranks(row, mine)
        if batch.repeats:
            alive = batch.records[row].alive(layer).to(hidden.device)
            indices = torch.nonzero(alive[ranks]).squeeze(1)
            rewrite = batch.records[row].rewrites.get(layer)
            return Selection(indices, None if rewrite is None else rewrite[1].to(hidden))
        signals = LayerSignals(
            layer=layer - 1,
            n_layers=len(self.family.layers),
            alive=ranks,
            n_visual=batch.records[row].visual_tokens,
            _signal=self._reading(layer, row, mine, hidden, rotation).signal,
        )
        return self.layer_method.checked_select(signals, count)

    def _ranks(self, row: int, mine: Tensor) -> Tensor:
        """Rank among the prompt's visual tokens of the slots ``mine``."""
        batch = self.batch
        column = batch.prompt[row][batch.slots.entry[row, mine]]
        return (batch.visual[row].long().cumsum(0) - 1)[column]

    def _reading(
        self, layer: int, row: int, mine: Tensor, hidden: Tensor, rotation: tuple[Tensor, Tensor]
    ) -> RowReading:
        batch, slots = self.batch, self.batch.slots
        positions = batch.entry_positions[row]
        if self.method.positions == "compact":
            positions = positions - self._gone(slots)[row].long().cumsum(0)
        image = torch.nonzero(batch.entry_visual[row]).squeeze(1)
        text = batch.entry_valid[row] & ~batch.entry_visual[row]
        text[: int(image[0])] = False
        tapped = batch.tapped
        return RowReading(
            family=self.family,
            layer=layer,
            hidden=hidden[row],
            valid=slots.valid[row],
            mine=mine,
            tapped=None if tapped is None else tapped.row(row),
            rotation=tuple(r.expand(len(hidden), -1, -1)[row] for r in rotation),
            positions=positions[slots.entry[row]],
            embeddings=None if batch.embeddings is None else batch.embeddings[row],
            image_columns=image,
            text_columns=torch.nonzero(text).squeeze(1),
        )

    def _note_layer(self, layer: int, row: int, mine: Tensor, picked: Selection) -> None:
        if self.batch.repeats:
            return
        record = self.batch.records[row]
        alive = torch.zeros(record.visual_tokens, dtype=torch.bool)
        kept = self._ranks(row, mine)[picked.indices].cpu()
        alive[kept] = True
        record.stages.append((layer, alive))
        if picked.features is not None:
            record.rewrites[layer] = (record.visual[kept], picked.features.detach().cpu())
