"""What was really in force: processor, generation config, and the first prompt as the model got it.

A cell's key holds what was asked for and the fingerprint of the files that decide the rest. This is
for people: whoever doubts a number sees the text and the token ids behind it in ``cell.yaml``.
"""

from __future__ import annotations

import enum
import itertools
import re
from typing import Any

from vtprune.harness.request.presets import Settings
from vtprune.models.load import VLM

#: entries of an image processor that shape pixels
_SHAPING = (
    "size", "crop_size", "do_resize", "do_center_crop", "do_pad", "resample", "image_mean",
    "image_std", "image_grid_pinpoints", "patch_size", "merge_size",
)  # fmt: skip


def describe(vlm: VLM, settings: Settings, generation: Any, inputs: Any) -> dict[str, Any]:
    """Plain data for ``cell.yaml``.

    Args:
        generation: the generation config in force.
        inputs: of the model, for the first batch; its first row is told.
    """
    ids = inputs["input_ids"][0][inputs["attention_mask"][0].bool()].tolist()
    images = vlm.processor.image_processor
    given = images.to_dict()
    return {
        "preset": settings.preset,
        "processor": {
            "class": type(images).__name__,
            **{name: _plain(given[name]) for name in _SHAPING if given.get(name) is not None},
        },
        "before_the_processor": {
            name: settings.processor[name]
            for name in ("do_pad", "jpeg_quality", "resize_min_pixels", "resize_max_pixels")
            if settings.processor.get(name) is not None
        },
        "generation_config": {
            "from": settings.generation_config,
            **{k: _plain(v) for k, v in sorted(generation.to_diff_dict().items())
               if k != "transformers_version"},
            "max_new_tokens": settings.max_new_tokens,
        },
        "first_prompt": _text(vlm.processor, ids),
        "first_token_ids": " ".join(_runs(ids)),
    }  # fmt: skip


def _text(processor: Any, ids: list[int]) -> str:
    """The prompt with its special tokens; placeholders of a picture as ``[<image> x number]``."""
    text = processor.tokenizer.decode(ids, skip_special_tokens=False)
    one = re.escape(processor.image_token)

    def told(found: re.Match[str]) -> str:
        return f"[{processor.image_token} x {found[0].count(processor.image_token)}]"

    return re.sub(rf"{one}(?:\s*{one})+", told, text)


def _runs(ids: list[int]) -> list[str]:
    """Ids as text, a run of one id as ``[id x number]``."""
    found = []
    for one, group in itertools.groupby(ids):
        number = len(list(group))
        found.append(str(one) if number == 1 else f"[{one} x {number}]")
    return found


def _plain(value: Any) -> Any:
    if hasattr(value, "items"):
        return {str(k): _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, enum.Enum):  # some are numbers, too, and yet no plain ones
        return value.value
    return value if isinstance(value, (bool, int, float, str)) else str(value)
