"""Pruning inside an unmodified Hugging Face VLM, by removable hooks on its instance.

Hooked are ``generate`` (which prompt was asked), the encoder (``encode``), the multimodal model
(ids; prefill or not), the language model (``enter``: drop before its first layer) and the decoder
layers (``layers``: drop inside). State belongs to the cache: every prefill makes a chain of stages
(``stage``), held by the cache that it fills (``holding``), and a later forward finds the chain of
its own cache (``decode``). What is neither is refused.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.methods import PruningMethod
from vtprune.models import cache as kv
from vtprune.models import decode, refuse
from vtprune.models.batch import Prompts, by_name, row_positions
from vtprune.models.calls import Calls
from vtprune.models.encode import Encoding
from vtprune.models.enter import Entry
from vtprune.models.errors import PruningUnsupported
from vtprune.models.families import Family
from vtprune.models.holding import chain_of, hold
from vtprune.models.layers import Choosing, Layers
from vtprune.models.run import PruningRun
from vtprune.models.signals import AttentionTap, Heard
from vtprune.models.stage import Chain, Step, lowered
from vtprune.models.text_tower import TextTower

# Contexts open per model, innermost last: only that one acts, the others wait.
_OPEN: weakref.WeakKeyDictionary[nn.Module, list[Runtime]] = weakref.WeakKeyDictionary()
_NUMBERS = itertools.count()
#: prompts without a cache that may still go on, per thread
_REMEMBERED = 8


@dataclass
class _Forward:
    """One forward of the multimodal model: its arguments, later its step along a chain."""

    named: dict[str, Any]
    prefill: bool
    step: Step | None = None
    choosing: Choosing | None = None
    entered: bool = False


class Runtime:
    """The hooks of one context."""

    def __init__(
        self,
        family: Family,
        method: PruningMethod,
        run: PruningRun,
        text_tower: TextTower | None = None,
    ) -> None:
        refuse.model_and_method(family, method, text_tower)
        self.family, self.method, self.run = family, method, run
        self.prunes, self.compact = method.ratio > 0, method.positions == "compact"
        acting = [part for part in method.chain if part.ratio > 0 and self.prunes]
        parts = [part for part in acting if part.place in ("encoder", "tokens")]
        needs = frozenset(name for part in parts for name in part.needs)
        if any(getattr(part, "scope", "") == "per_tile" for part in parts):
            needs |= {"tile_features"}
        inside = next((part for part in acting if part.place == "layers"), None)
        self.layers = None if inside is None else Layers(family, inside, self.compact, run)
        self.encoding = Encoding(family, method, needs, run._input, lambda: run.shared)
        self.entry = Entry(family, method, run, text_tower, self.encoding, parts)
        self.calls = Calls(family, self.prunes)
        self.number, self._prefills = next(_NUMBERS), 0
        self._thread = threading.local()
        self._core_signature = inspect.signature(family.core.forward)
        self._lm_signature = inspect.signature(family.language_model.forward)

    # -- attach and restore -----------------------------------------------------------------------

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks in place for the duration; the model is as before afterwards, errors included."""
        family = self.family
        stack = _OPEN.setdefault(family.model, [])
        stack.append(self)
        with contextlib.ExitStack() as undo:
            undo.callback(self._leave, stack)
            undo.enter_context(self.encoding.attached(lambda: self._waiting))
            undo.enter_context(self.calls.attached(lambda: self._waiting))
            undo.enter_context(self._language_tap())
            hooks: list[tuple[nn.Module, Callable[..., Any]]] = [
                (family.core, self._before_core),
                (family.language_model, self._before_lm),
            ]
            hooked = family.layers if self.layers is not None else family.layers[:1]
            for number, layer in enumerate(hooked):
                hooks.append((layer, functools.partial(self._before_layer, number)))
            for module, hook in hooks:
                handle = module.register_forward_pre_hook(_Here(hook), with_kwargs=True)
                undo.callback(handle.remove)
            after = family.core.register_forward_hook(_Here(self._after_core), always_call=True)
            undo.callback(after.remove)
            yield
            self._nothing_bypassed()

    def _leave(self, stack: list[Runtime]) -> None:
        stack.remove(self)
        if not stack:
            _OPEN.pop(self.family.model, None)

    @property
    def _waiting(self) -> bool:
        stack = _OPEN.get(self.family.model)
        return not stack or stack[-1] is not self

    @property
    def _forward(self) -> _Forward | None:
        return getattr(self._thread, "forward", None)

    def _nothing_bypassed(self) -> None:
        if self.prunes and self.encoding.calls and not self._prefills:
            raise PruningUnsupported(
                "pictures were encoded, but no prompt reached the hooks that prune: was the model "
                "compiled, or the language model called by itself? Nothing was pruned"
            )

    def _language_tap(self) -> contextlib.AbstractContextManager:
        if self.layers is None or "attention" not in self.layers.sources:
            return contextlib.nullcontext()
        listeners = {
            layer.self_attn: functools.partial(self._hear_layer, number)
            for number, layer in enumerate(self.family.layers)
        }
        return AttentionTap(listeners, {self.family.kernel})

    def _hear_layer(self, number: int, heard: Heard) -> None:
        now = self._forward
        if self._waiting or now is None or now.choosing is None:
            return
        if number + 1 < len(self.family.layers) and now.choosing.due(number + 1):
            now.choosing.heard = heard

    # -- the multimodal model: ids, and whether this is prefill -----------------------------------

    def _before_core(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        if self._waiting:
            return None
        named = by_name(self._core_signature, args, kwargs)
        cache = kv.given(named)
        if cache is None or cache.get_seq_length() == 0:
            self._prefills += 1
            self._check_prefill(module, named, cache)
            self.encoding.new_forward()
            self._thread.forward = _Forward(named, prefill=True)
            return None
        if not self.prunes:
            self._thread.forward = None
            return None
        chain = decode.own_chain(chain_of(cache), self.number)
        step = decode.follow(self.family, chain, named)
        chain.live = True
        self._thread.forward = _Forward(named, prefill=False, step=step)
        return (), named

    def _check_prefill(self, module: nn.Module, named: dict[str, Any], cache: Any) -> None:
        if not self.prunes:
            return
        if named.get("input_ids") is None:
            raise PruningUnsupported("prompts given as inputs_embeds cannot be pruned")
        if module.training:
            raise PruningUnsupported("pruning is for inference; call model.eval() first")
        if getattr(cache, "is_compileable", False):
            raise PruningUnsupported("static caches have one length for all layers; use dynamic")
        if getattr(self.method, "redecide", False) and not _cacheless(named):
            raise PruningUnsupported(
                f"{self.method.name}: redecide=true recomputes the prompt at every step; "
                "generate with use_cache=False"
            )

    def _after_core(self, module: nn.Module, args: tuple, output: Any) -> None:
        now = self._forward
        if self._waiting or now is None:
            return
        self._thread.forward = None
        if now.step is not None:
            now.step.chain.live = False
        if output is not None and not now.entered and self.prunes:
            raise PruningUnsupported(
                "the hooks of the language model did not run: is it compiled? Nothing was pruned"
            )

    # -- the language model -----------------------------------------------------------------------

    def _before_lm(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        if self._waiting:
            return None
        now = self._forward
        if now is None:
            if self.prunes:
                raise PruningUnsupported(
                    "the language model was called by itself: pruning needs the ids and pictures "
                    "that the whole model is given"
                )
            return None
        named, now.entered = by_name(self._lm_signature, args, kwargs), True
        if now.step is not None:
            return self._continue_lm(now.step, named)
        if now.named.get("input_ids") is None:
            return None  # only where nothing is pruned
        return self._enter_lm(now, named)

    def _enter_lm(self, now: _Forward, named: dict[str, Any]) -> Any:
        embeds, ids = named["inputs_embeds"], now.named["input_ids"]
        prompts = self.entry.read(ids, named.get("attention_mask"), _encoded(now.named))
        base = row_positions(named.get("position_ids"), embeds)
        before = self._goes_on(prompts) if _cacheless(now.named) else None
        if before is not None and not getattr(self.method, "redecide", False):
            now.step = self._again(before, prompts, base)
        else:
            now.step = self._first(now, prompts, ids, embeds, base, before)
        step = now.step
        stage = step.stage(0, embeds.device)
        if stage.order is None and stage.rewrite is None:
            self._keep_embeddings(now, embeds)
            return None
        if stage.order is not None:
            self._cut_others(step, named, embeds)
        named["inputs_embeds"] = embeds = stage.apply(embeds, step.grown)
        self._keep_embeddings(now, embeds)
        if stage.order is not None:
            self._shorten(step, named, embeds)
        return (), named

    def _first(
        self,
        now: _Forward,
        prompts: Prompts,
        ids: Tensor,
        embeds: Tensor,
        base: Tensor,
        before: Chain | None,
    ) -> Step:
        """Tokens are chosen for these prompts; ``before`` are the same ones, shorter."""
        refuse.picture_at_the_end(prompts, self.prunes)
        helper = self._ask(prompts, before)
        self.entry.new_records(prompts)
        stage, counts = self.entry.choose(prompts, embeds)
        if self.compact and stage.order is not None:
            lowered(prompts.valid.to(embeds.device), stage)
        chain = Chain(
            self.number, ids.shape[1], base.amax(1), [stage], said=[ids], helper=helper
        )  # fmt: skip
        if before is None and not helper:
            self.run.add(prompts.records[:: prompts.beams])
        if self.layers is not None:
            now.choosing = self.layers.plan(prompts, stage, counts)
        if before is None and _cacheless(now.named):
            self._remember(chain, prompts)
        return Step(self.family, chain, base)

    def _ask(self, prompts: Prompts, before: Chain | None) -> bool:
        """Name the prompts; whether they only help those that the user asked."""
        if before is not None:
            prompts.names, prompts.beams = before.names, before.beams
            prompts.foreground, prompts.questions = before.foreground, before.questions
            return before.helper
        beams, helper = self.calls.prompt()
        self.entry.name(prompts, beams, helper)
        return helper

    def _keep_embeddings(self, now: _Forward, embeds: Tensor) -> None:
        layers = self.layers
        if now.choosing is not None and layers is not None and "entry" in layers.sources:
            now.choosing.embeddings = embeds

    def _cut_others(self, step: Step, named: dict[str, Any], embeds: Tensor) -> None:
        """Whatever else the language model takes for every token, as the family says."""
        stage, rows = step.stage(0, embeds.device), len(embeds)
        order = step.columns(stage)
        valid = torch.cat([stage.valid, stage.valid.new_ones(rows, step.grown)], dim=1)
        keep = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        self.family.follow(named, keep.scatter(1, order, valid), order, valid)

    def _shorten(self, step: Step, named: dict[str, Any], embeds: Tensor) -> None:
        """Positions and mask of the tokens that enter layer 0."""
        stage, given = step.stage(0, embeds.device), named.get("position_ids")
        if given is None or given.dim() == 2 or stage.less is not None:
            named["position_ids"] = step.positions(stage)
        else:
            # A leading text row only serves the library's packing detection.
            planes = given[1:] if given.shape[0] == 4 else given
            columns = step.columns(stage).expand(planes.shape[0], -1, -1)
            named["position_ids"] = planes.expand(-1, len(embeds), -1).gather(2, columns)
        mask = step.mask(stage, embeds)
        if mask is None and kv.given(named) is None:
            # Without cache and mask, gapped positions are taken for packed sequences.
            mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        named["attention_mask"] = mask

    def _continue_lm(self, step: Step, named: dict[str, Any]) -> Any:
        chain = step.chain
        if not chain.drops:
            return None
        embeds = named["inputs_embeds"]
        step.base = row_positions(named.get("position_ids"), embeds)
        stage = step.stage(0, embeds.device)
        if stage.order is None:
            return None
        named["attention_mask"] = step.mask(stage, embeds)
        if stage.shift is not None:
            named["position_ids"] = step.positions(stage)
        return (), named

    # -- prompts without a cache ------------------------------------------------------------------

    def _remember(self, chain: Chain, prompts: Prompts) -> None:
        chain.ids, chain.images, chain.records = prompts.ids, prompts.images, prompts.records
        chain.names, chain.beams = prompts.names, prompts.beams
        chain.foreground, chain.questions = prompts.foreground, prompts.questions
        self._thread.open = [*getattr(self._thread, "open", ()), chain][-_REMEMBERED:]

    def _goes_on(self, prompts: Prompts) -> Chain | None:
        """The prompts that these ones continue, with the same pictures; beams may have swapped."""
        if self.run.begins:
            return None
        for chain in reversed(getattr(self._thread, "open", ())):
            old = chain.ids
            if old is None or len(old) != len(prompts.ids) or old.shape[1] >= prompts.ids.shape[1]:
                continue
            same = _identities(chain.images) == _identities(prompts.images)
            if same and torch.equal(prompts.ids[:, : old.shape[1]], old):
                return chain
        return None

    def _again(self, chain: Chain, prompts: Prompts, base: Tensor) -> Step:
        """A step without a cache: the whole prompt anew, what was chosen stands."""
        tail = prompts.valid[:, chain.width :]
        visible = None if bool(tail.all()) else tail.to(base.device)
        return Step(self.family, chain, base, prompts.ids.shape[1] - chain.width, visible)

    # -- a decoder layer --------------------------------------------------------------------------

    def _before_layer(
        self, number: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        now = self._forward
        if self._waiting or now is None or now.step is None:
            return None
        step, choosing, hidden = now.step, now.choosing, args[0]
        cache = kv.given(kwargs)
        if number == 0 and now.prefill and self.prunes and cache is not None:
            hold(cache, step.chain)
            step.chain.live = True
        if self.layers is None:
            return None
        if choosing is not None and choosing.due(number):
            hidden = self.layers.drop(number, step, choosing, hidden, kwargs["position_embeddings"])
        stage = step.stage(number, hidden.device)
        if stage.layer == 0:
            return None
        if choosing is None and stage.layer == number and not step.decoding:
            hidden = stage.apply(hidden, step.grown)
        if step.decoding:
            self._check_length(step, stage, number, cache)
        kwargs["attention_mask"] = step.mask(stage, hidden)
        kwargs["position_embeddings"] = step.rotation(stage, hidden, kwargs["position_embeddings"])
        # Rotation is applied already; gapped ids would only mislead flash attention.
        kwargs["position_ids"] = None
        return (hidden, *args[1:]), kwargs

    def _check_length(self, step: Step, stage: Any, number: int, cache: Any) -> None:
        new = step.base.shape[1]
        if cache.get_seq_length(number) + new != stage.width + step.grown:
            raise PruningUnsupported("the cache was cropped (assisted decoding?): not supported")


class _Here:
    """A hook of this model object: a copy of the model must not carry it along."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        self.hook = hook

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.hook(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        raise PruningUnsupported("copy the model outside of the pruning context, not inside")


def _cacheless(named: dict[str, Any]) -> bool:
    """Nothing says that the forward goes on in a cache."""
    return kv.given(named) is None and not named.get("use_cache")


def _encoded(named: dict[str, Any]) -> Any:
    return named.get("mm_encoder_outputs")


def _identities(pictures: Sequence[Sequence[object]]) -> list[list[int]]:
    """Which objects they are: the same picture again is the same object."""
    return [[id(one) for one in row] for row in pictures]
