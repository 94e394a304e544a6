"""The processor of a checkpoint folder, completed from config.json where the folder leaves it out.

Folders on the hub come from many versions of the library. What an older one did not write (the
patch size, which features are selected, whether the tower has a CLS token, where the chat template
stands) follows from config.json or from the tokenizer, and is said in a note. Nothing is guessed:
``check`` then compares the placeholders of a drawn picture with the features the tower returns.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vtprune.models.errors import ModelLoadError

TEMPLATES = Path(__file__).parent / "templates"
#: towers whose first feature is a CLS token, which ``vision_feature_select_strategy=default`` drops
_WITH_CLS = ("clip_vision_model",)
_FILES = ("processor_config.json", "preprocessor_config.json")


def load(
    path: str, config: Any, where: Mapping[str, Any], chat_template: str | None = None
) -> tuple[Any, tuple[str, ...]]:
    """The processor, and notes on what the folder did not say itself.

    Args:
        path: checkpoint folder or hub id.
        config: of the model, as ``AutoConfig`` gives it.
        where: keyword arguments of ``from_pretrained``.
        chat_template: a file, or the name of a template in ``models/templates``; None: the
            checkpoint's own.

    Raises:
        ModelLoadError: no chat template anywhere, or no such template.
        OSError, ValueError: as ``from_pretrained`` raises them.
    """
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(path, **where)
    if getattr(processor, "tokenizer", None) is None:
        raise ModelLoadError(f"cannot load {path}: its processor has no tokenizer")
    stated, notes = _stated(Path(path)), []
    filled = {
        name: value
        for name, value in _facts(config).items()
        if hasattr(processor, name) and name not in stated and getattr(processor, name) != value
    }
    for name, value in filled.items():
        setattr(processor, name, value)
    if filled:
        told = ", ".join(f"{name}={value}" for name, value in filled.items())
        notes.append(f"processor: {told} follow from config.json; its own files do not say")
    notes += _with_template(processor, path, chat_template)
    return processor, tuple(notes)


def _stated(folder: Path) -> set[str]:
    """Keys that the folder's own processor files hold; a hub id has said nothing yet."""
    found: set[str] = set()
    for name in _FILES:
        if (folder / name).is_file():
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            found |= {key for key, value in content.items() if value is not None}
    return found


def _facts(config: Any) -> dict[str, Any]:
    """What config.json says about the placeholders of a picture."""
    vision = getattr(config, "vision_config", None)
    strategy = getattr(config, "vision_feature_select_strategy", None)
    if vision is None or strategy is None:
        return {}
    side = vision.image_size // vision.patch_size if hasattr(vision, "image_size") else None
    return {
        "patch_size": vision.patch_size,
        "vision_feature_select_strategy": strategy,
        "num_additional_image_tokens": int(vision.model_type in _WITH_CLS),
        **({"num_image_tokens": side**2} if side else {}),
    }


def _with_template(processor: Any, path: str, asked: str | None) -> list[str]:
    """Put the chat template in place; notes on where it came from."""
    if asked is not None:
        processor.chat_template = template(asked)
        return []
    if getattr(processor, "chat_template", None):
        return []
    if own := getattr(processor.tokenizer, "chat_template", None):
        processor.chat_template = own
        return ["chat template: the tokenizer's; the processor has none"]
    raise ModelLoadError(
        f"cannot load {path}: it has no chat template to prompt with; give one, "
        f"model.chat_template=FILE.jinja or one of {', '.join(templates())}"
    )


def templates() -> list[str]:
    """Names of the chat templates that ship: conventions of the families' language models."""
    return sorted(file.stem for file in TEMPLATES.glob("*.jinja"))


def template(asked: str) -> str:
    """Text of a chat template by name or file.

    Raises:
        ModelLoadError: neither a file nor a known name; names the nearest.
    """
    file = Path(asked).expanduser()
    if file.is_file():
        return file.read_text(encoding="utf-8")
    if asked in templates():
        return (TEMPLATES / f"{asked}.jinja").read_text(encoding="utf-8")
    near = difflib.get_close_matches(asked, templates(), n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise ModelLoadError(
        f"model.chat_template: no such file or template: {asked}{hint} "
        f"(shipped: {', '.join(templates())})"
    )


def check(vlm: Any) -> None:
    """Compare the placeholders of one drawn picture of an odd shape with the tower's features.

    A wrong processor otherwise fails at the first sample, with data and engine loaded, or, where
    the library pads or cuts, not at all.

    Raises:
        ModelLoadError: they differ, or the processor cannot make an input of the picture.
    """
    import torch

    processor, model = vlm.processor, vlm.model
    content = [{"type": "image"}, {"type": "text", "text": "What is shown?"}]
    chat = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    if processor.image_token not in text:
        raise ModelLoadError(
            f"cannot load {vlm.name}: its chat template puts no picture into the prompt; give "
            f"another, model.chat_template=FILE.jinja or one of {', '.join(templates())}"
        )
    try:
        inputs = processor(text=[text], images=[_picture()], return_tensors="pt")
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise ModelLoadError(
            f"cannot load {vlm.name}: its processor cannot prepare a picture: {error}"
        ) from error
    config = model.config
    placeholder = getattr(config, "image_token_id", None)
    if placeholder is None:
        placeholder = config.image_token_index
    asked = int((inputs["input_ids"] == placeholder).sum())
    inputs = inputs.to(vlm.device, getattr(torch, vlm.dtype))
    encode = model.model.get_image_features
    given = {k: v for k, v in inputs.items() if k in _arguments(encode)}
    with torch.inference_mode():
        features = encode(**given).pooler_output
    got = sum(len(feature) for feature in features)
    if asked != got:
        raise ModelLoadError(
            f"cannot load {vlm.name}: its processor makes {asked} placeholders for a picture "
            f"whose encoder returns {got} features; check patch_size, "
            "vision_feature_select_strategy and num_additional_image_tokens of its processor"
        )


def _arguments(function: Any) -> set[str]:
    import inspect

    return set(inspect.signature(function).parameters) - {"input_ids"}


def _picture() -> Any:
    """An RGB picture whose sides divide by nothing, 97 x 61 pixels, always the same."""
    import numpy as np
    import PIL.Image

    pixels = np.random.default_rng(0).integers(0, 256, (61, 97, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)
