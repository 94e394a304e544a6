"""What cannot be pruned correctly, said in one line before it is tried."""

from __future__ import annotations

from typing import Any

from torch import nn

from vtprune.methods import PruningMethod
from vtprune.models import signals
from vtprune.models.batch import Prompts
from vtprune.models.errors import PruningUnsupported
from vtprune.models.families import Family
from vtprune.models.text_tower import TextTower

#: where the signals of a part come from, by where it acts
_SIDES: dict[str, signals.Side] = {
    "picture": "encoder", "encoder": "encoder", "tokens": "encoder", "layers": "language",
    "nowhere": "encoder",
}  # fmt: skip


def unprepared(method: PruningMethod) -> PruningUnsupported:
    """The error of a control whose prompt was made from the unchanged picture."""
    return PruningUnsupported(
        f"{method.name} changes the prompt itself: hand its pictures and the processor to "
        "run.reduce() and use what it returns"
    )


def model_and_method(family: Family, method: PruningMethod, tower: TextTower | None) -> None:
    """Check that ``method`` is defined for this model.

    Raises:
        PruningUnsupported: it is not; names what would be, where there is something.
    """
    if method.ratio == 0:
        return
    _windows(family.language_model.config)
    not_compiled(family)
    read = [(part, text) for part in method.chain if part.ratio > 0 for text in part.needs]
    asked = [(part, signals.asked(text, _SIDES[part.place])) for part, text in read]
    if any(one.signal.cls for _, one in asked) and not family.has_cls:
        instead = ", ".join(f"{k}={v}" for k, v in method.without_cls.items())
        hint = f"; use {instead} instead" if instead else ""
        raise PruningUnsupported(
            f"{method.name} reads the CLS token, which the vision tower of "
            f"{family.model.config.model_type} does not have{hint}"
        )
    for part, one in asked:
        if one.signal.side == "encoder":
            _encoder_signal(family, method, part, one, tower)
    if method.positions == "compact" and not family.scalar_positions:
        raise PruningUnsupported(
            f"{method.name}: positions=compact is not defined for m-rope; use original"
        )


def _windows(config: Any) -> None:
    """Check that every layer of the language model sees the whole prompt, however that is said."""
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    if set(kinds or ()) - {"full_attention"} or (kinds is None and window is not None):
        raise PruningUnsupported(
            "text models with sliding-window or chunked attention cannot be pruned"
        )


def bare(model: Any) -> nn.Module:
    """The Hugging Face model behind an object that holds or wraps one.

    Raises:
        PruningUnsupported: it is wrapped by ``torch.compile``.
    """
    found: Any = model if isinstance(model, nn.Module) else model.model
    if hasattr(found, "get_base_model"):  # PEFT
        found = found.get_base_model()
    if hasattr(found, "_orig_mod"):
        raise PruningUnsupported(f"{_COMPILED}: give the model itself, not torch.compile(model)")
    return found


def not_compiled(family: Family) -> None:
    """Check that hooks run: what was compiled before them goes past them without a word.

    Raises:
        PruningUnsupported: the model or a part of it is compiled.
    """
    whole = (family.model, family.core, family.language_model)
    for module in (*whole, *family.layers):
        forward = vars(module).get("forward")
        if module._compiled_call_impl is not None or hasattr(forward, "_torchdynamo_orig_callable"):
            raise PruningUnsupported(f"{_COMPILED} ({type(module).__name__} is): load it anew")


_COMPILED = "compiled models cannot be pruned, their hooks do not run"


def option(family: Family, named: dict[str, Any], name: str) -> Any:
    """The value of a generation option in force: of the call, its config, the model's."""
    configs = (named.get("generation_config"), family.model.generation_config)
    values = [named.get(name), *(getattr(config, name, None) for config in configs)]
    return next((value for value in values if value is not None), None)


def generation(family: Family, named: dict[str, Any]) -> None:
    """Check that a call of ``generate`` can be followed, before anything runs.

    Raises:
        PruningUnsupported: it cannot.
    """
    not_compiled(family)
    for name in ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit"):
        if option(family, named, name) is not None:
            raise PruningUnsupported(
                f"assisted and prompt-lookup decoding crop the cache and cannot be pruned: leave "
                f"{name} out"
            )
    if option(family, named, "prefill_chunk_size") is not None:
        raise PruningUnsupported(
            "chunked prefill cannot be pruned, tokens are chosen from the whole prompt: leave "
            "prefill_chunk_size out"
        )


def picture_at_the_end(prompts: Prompts, prunes: bool) -> None:
    """Check that the last token of every prompt, where the answer is read, is text.

    Raises:
        PruningUnsupported: it belongs to a picture, and could be dropped.
    """
    if not prunes:
        return
    for valid, visual in zip(prompts.valid, prompts.visual, strict=True):
        if bool(valid.any()) and bool(visual[int(valid.nonzero().max())]):
            raise PruningUnsupported(
                "the prompt ends with a picture: its last token, from which the answer is read, "
                "could be dropped; put text after the picture"
            )


def _encoder_signal(
    family: Family,
    method: PruningMethod,
    part: PruningMethod,
    one: signals.Asked,
    tower: TextTower | None,
) -> None:
    """Check that the family offers what a part before the language model reads."""
    if one.signal.hears == "question":
        _text_tower(family, part, tower)
    elif one.signal.name not in family.offers:
        hint = _instead(part, one.text) or _instead(method, one.text)
        raise PruningUnsupported(
            f"{part.name} needs the signal '{one.text}', which the family "
            f"{family.model.config.model_type} does not offer{hint}"
        )
    signals.tap_of(family, one)  # the layer exists


def _instead(part: PruningMethod, signal: str) -> str:
    other = part.instead.get(signal)
    return f"; use {other} instead" if other else ""


def _text_tower(family: Family, part: PruningMethod, tower: TextTower | None) -> None:
    hint = _instead(part, "clip_similarity")
    config: Any = family.model.config
    who = f"{part.name} needs 'clip_similarity'"
    if getattr(config.vision_config, "model_type", "") != "clip_vision_model":
        raise PruningUnsupported(
            f"{who}, but the encoder of {config.model_type} has no CLIP text tower{hint}"
        )
    if tower is None:
        raise PruningUnsupported(
            f"{who}: give the CLIP checkpoint the encoder came from (model.clip=..., or "
            f"prune(..., text_tower=...)){hint}"
        )
    if tower.width != config.vision_config.hidden_size:
        raise PruningUnsupported(
            f"{who}: the CLIP checkpoint's vision tower is {tower.width} wide, this "
            f"model's {config.vision_config.hidden_size}{hint}"
        )
