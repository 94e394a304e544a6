"""What cannot be pruned correctly, said in one line before it is tried."""

from __future__ import annotations

from typing import Any

from vtprune.methods.base import PruningMethod
from vtprune.models.errors import PruningUnsupported
from vtprune.models.families import Family
from vtprune.models.text_tower import TextTower

#: signals of an encoder with a CLS token
CLS_SIGNALS = frozenset({"cls_attention", "last_attention", "last_keys"})


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
    if frozenset(method.needs) & {"cls_attention", "last_attention"} and not family.has_cls:
        instead = ", ".join(f"{k}={v}" for k, v in method.without_cls.items())
        hint = f"; use {instead} instead" if instead else ""
        raise PruningUnsupported(
            f"{method.name} reads the CLS token, which the vision tower of "
            f"{family.model.config.model_type} does not have{hint}"
        )
    for part in method.chain:
        if part.place in ("tokens", "encoder") and part.ratio > 0:
            _signals(family, method, part, tower)
    if method.positions == "compact" and not family.scalar_positions:
        raise PruningUnsupported(
            f"{method.name}: positions=compact is not defined for m-rope; use original"
        )


def _signals(
    family: Family, method: PruningMethod, part: PruningMethod, tower: TextTower | None
) -> None:
    """Check that the family offers what a part before the language model reads."""
    wanted = frozenset(part.needs)
    if "clip_similarity" in wanted:
        _text_tower(family, part, tower)
        wanted -= {"clip_similarity"}
    cls = CLS_SIGNALS if family.has_cls else frozenset()
    for signal in sorted(wanted - family.offers - cls - {"fg_mask"}):
        hint = _instead(part, signal) or _instead(method, signal)
        raise PruningUnsupported(
            f"{part.name} needs the signal '{signal}', which the family "
            f"{family.model.config.model_type} does not offer{hint}"
        )


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
