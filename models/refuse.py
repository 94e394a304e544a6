"""What cannot be pruned correctly, said in one line before it is tried."""

from __future__ import annotations

from typing import Any

from vtprune.methods.base import PruningMethod
from vtprune.models import signals
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
    config = family.language_model.config
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise PruningUnsupported("text models with sliding-window attention cannot be pruned")
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
