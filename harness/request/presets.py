"""What stands between a picture with its question and the model: settings in force, and presets.

Two runs of one checkpoint on one benchmark differ where pictures are resized to other limits, where
a generation config penalises repetition, or where one may talk longer than the other. Published
numbers were made under the settings of some client. A preset is the set of such settings that one
client uses, for every family it knows; a user's own value of an option wins over the preset's.

    checkpoint      files of the checkpoint as they are, 32 new tokens
    lmms_eval       lmms-eval 0.7.3: llava_hf, qwen2_vl, qwen2_5_vl
    vlmevalkit      VLMEvalKit 0.0.20: LLaVA_Next, and Qwen2VLChat as its registry calls it
    llava_scripts   LLaVA-1.5's own evaluation: padded pictures, the system text of vicuna_v1

Values were read off the calls these clients make (``tests/parity``). No torch here, and no look at
weights: settings in force are part of a cell's key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from vtprune import places
from vtprune.harness.request.errors import ConfigError, unknown

CHECKPOINT, LLAVA_SCRIPTS = "checkpoint", "llava_scripts"
PRESETS = (CHECKPOINT, "lmms_eval", "vlmevalkit", LLAVA_SCRIPTS)
GENERATION = ("checkpoint", "neutral")

#: system text of LLaVA's conversation template vicuna_v1
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
_LIMITS = ("min_pixels", "max_pixels")
_RESIZE = ("resize_min_pixels", "resize_max_pixels")
_QWEN = (*_LIMITS, *_RESIZE, "jpeg_quality")
#: options of ``model.processor`` by model type
OPTIONS: dict[str, tuple[str, ...]] = {
    "llava": ("do_pad",),
    "llava_next": ("image_grid_pinpoints",),
    "llava_onevision": ("image_grid_pinpoints",),
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
}
#: limits of ``qwen_vl_utils``, through which both engines hand pictures to a Qwen processor
_UTILS = {"resize_min_pixels": 4 * 28 * 28, "resize_max_pixels": 16384 * 28 * 28}
#: VLMEvalKit's registry entries of the Instruct checkpoints
_REGISTRY = {**_UTILS, "resize_min_pixels": 1280 * 28 * 28}
#: (preset, model type) -> options of ``model.processor``
_PROCESSOR: dict[tuple[str, str], dict[str, Any]] = {
    ("lmms_eval", "qwen2_vl"): {
        "min_pixels": 3136, "max_pixels": 602112, "resize_min_pixels": 3136,
        "resize_max_pixels": 602112, "jpeg_quality": 85,
    },
    ("lmms_eval", "qwen2_5_vl"): {
        **_UTILS, "min_pixels": 256 * 28 * 28, "max_pixels": 1605632,
    },
    ("vlmevalkit", "qwen2_vl"): _REGISTRY,
    ("vlmevalkit", "qwen2_5_vl"): _REGISTRY,
    (LLAVA_SCRIPTS, "llava"): {"do_pad": True},
}  # fmt: skip
#: benchmarks for which a client changes an option of its own: (preset, bench) -> options
_BY_BENCH = {("vlmevalkit", "ocrbench"): {"resize_min_pixels": 10 * 10 * 28 * 28}}
#: new tokens where the task states no number: (preset, model type), then the preset alone
_NEW_TOKENS = {
    (CHECKPOINT, None): 32,
    ("lmms_eval", None): 1024,
    ("lmms_eval", "qwen2_vl"): 128,
    ("lmms_eval", "qwen2_5_vl"): 128,
    ("vlmevalkit", None): 2048,
    (LLAVA_SCRIPTS, None): 128,
}


@dataclass(frozen=True)
class Settings:
    """Settings in force for one cell.

    Attributes:
        preset: the one they come from.
        processor: options of ``model.processor`` that are set; an option that is not leaves the
            checkpoint's own.
        generation_config: ``checkpoint``: the checkpoint's file with sampling and beams off;
            ``neutral``: plain greedy decoding, nothing of that file but its special tokens.
        max_new_tokens: where the task states no number.
        system: system message; None: as the chat template has it.
    """

    preset: str
    processor: Mapping[str, Any] = field(default_factory=dict)
    generation_config: str = "checkpoint"
    max_new_tokens: int = 32
    system: str | None = None

    def decoding(self) -> dict[str, Any]:
        """As a cell is keyed by it."""
        neutral = self.generation_config == "neutral"
        return {
            "max_new_tokens": self.max_new_tokens,
            **({"generation_config": "neutral"} if neutral else {}),
        }

    def shown(self) -> str:
        """For people: the preset, and the processor's options in force."""
        options = ", ".join(f"{name}={value}" for name, value in self.processor.items())
        return f"{self.preset} ({options})" if options else self.preset


def of(config: Mapping[str, Any], model_type: str | None = None) -> Settings:
    """The settings of a composed config.

    Args:
        model_type: of the checkpoint; None: as far as it can be told without looking for it.

    Raises:
        ConfigError: no such preset or option, or values that cannot be; names what can.
    """
    model, decoding = config["model"], config.get("decoding") or {}
    kind = model_type or type_of(model)
    preset = _preset(model, (config.get("engine") or {}).get("name"), kind)
    made = {
        **_PROCESSOR.get((preset, str(kind)), {}),
        **(_BY_BENCH.get((preset, _bench(config)), {}) if kind in ("qwen2_vl", "qwen2_5_vl")
           else {}),
    }  # fmt: skip
    own = {k: v for k, v in (model.get("processor") or {}).items() if v is not None}
    _check_options(own, kind)
    made |= own
    _check_limits(made, preset)
    limit = decoding.get("max_new_tokens")
    if limit is None:
        limit = _NEW_TOKENS.get((preset, kind), _NEW_TOKENS[preset, None])
    system = (model.get("prompt") or {}).get("system")
    if system is None and preset == LLAVA_SCRIPTS:
        system = VICUNA
    return Settings(preset, made, _generation(decoding, preset), limit, system)


def type_of(model: Mapping[str, Any]) -> str | None:
    """Model type of a ``conf/model`` entry by its local folder or its sizes; None: not known."""
    path, sizes = model.get("path"), model.get("architecture")
    found = None
    if path:
        found = _type_in(str(_place(path) / "config.json"))
    elif sizes:
        found = _type_in(str(_place(sizes)))
    return found


def _place(written: Any) -> Path:
    """A path as conf/ writes it; tables look at configs that are not resolved."""
    own = re.fullmatch(r"\$\{repo:([^{}]+)\}", str(written))
    return places.path(own[1]) if own else Path(str(written)).expanduser()


def check_found(config: Mapping[str, Any], model_type: str) -> None:
    """Refuse a checkpoint whose type could not be told before it was found, and matters.

    Raises:
        ConfigError: names the option that tells it.
    """
    if of(config) != of(config, model_type):
        raise ConfigError(
            f"model: the checkpoint is a {model_type}, which conf/model does not say, so settings "
            f"of model.preset={of(config).preset} would differ between machines; set "
            "model.architecture to its config.json, or model.preset=checkpoint"
        )


@cache
def _type_in(file: str) -> str | None:
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # whoever needs the file says what is wrong with it
    if not isinstance(content, dict):
        return None
    found = content.get("config", content).get("model_type")
    return None if found is None else str(found)


def _bench(config: Mapping[str, Any]) -> str:
    return str((config.get("bench") or {}).get("name"))


def _preset(model: Mapping[str, Any], engine: str | None, kind: str | None) -> str:
    asked = model.get("preset")
    if asked is None:
        return engine if engine is not None and engine in PRESETS else CHECKPOINT
    if asked not in PRESETS:
        raise ConfigError(unknown("model.preset", str(asked), PRESETS))
    if asked == LLAVA_SCRIPTS and kind not in ("llava", None):
        raise ConfigError(
            f"model.preset={LLAVA_SCRIPTS} is how LLaVA-1.5 was evaluated; a {kind} has "
            f"{', '.join(name for name in PRESETS if name != LLAVA_SCRIPTS)}"
        )
    return str(asked)


def _generation(decoding: Mapping[str, Any], preset: str) -> str:
    asked = decoding.get("generation_config")
    if asked is None:
        return "neutral" if preset == "vlmevalkit" else "checkpoint"
    if asked not in GENERATION:
        raise ConfigError(unknown("decoding.generation_config", str(asked), GENERATION))
    return str(asked)


def _check_options(own: Mapping[str, Any], kind: str | None) -> None:
    if kind is None:
        known = tuple(dict.fromkeys(name for names in OPTIONS.values() for name in names))
    else:
        known = OPTIONS.get(kind, ())
    for name, value in own.items():
        if name not in known:
            if not known:
                raise ConfigError(f"model.processor.{name}: a {kind} has no such options")
            raise ConfigError(unknown(f"model.processor option of a {kind}", name, known))
        _check_value(name, value)


def _check_value(name: str, value: Any) -> None:
    where = f"model.processor.{name}"
    if name == "do_pad":
        if not isinstance(value, bool):
            raise ConfigError(f"{where} must be true or false: got {value!r}")
    elif name == "image_grid_pinpoints":
        pairs = isinstance(value, list) and value and all(
            isinstance(pair, list) and len(pair) == 2
            and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in pair)
            for pair in value
        )  # fmt: skip
        if not pairs:
            raise ConfigError(
                f"{where} must list pairs of height and width in pixels, e.g. "
                f"[[336,672],[672,336]]: got {value!r}"
            )
    elif not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{where} must be a whole number: got {value!r}")
    elif name == "jpeg_quality" and not 1 <= value <= 100:
        raise ConfigError(f"{where} must lie in 1 ... 100: got {value}")


#: pixels behind one visual token of the Qwen families: the fewest a picture can have
_TOKEN = 28 * 28


def _check_limits(made: Mapping[str, Any], preset: str) -> None:
    for low, high in (_LIMITS, _RESIZE):
        least, most = made.get(low), made.get(high)
        for name, value in ((low, least), (high, most)):
            if value is not None and value < _TOKEN:
                raise ConfigError(
                    f"model.processor.{name}={value} is less than one visual token: at least "
                    f"28 x 28 = {_TOKEN} pixels"
                )
        if least is not None and most is not None and least > most:
            raise ConfigError(
                f"model.processor.{low}={least} is above model.processor.{high}={most} "
                f"(model.preset={preset} sets what you leave out)"
            )
    if (made.get("resize_min_pixels") is None) != (made.get("resize_max_pixels") is None):
        raise ConfigError(
            "give model.processor.resize_min_pixels and resize_max_pixels together: they are the "
            "two limits of one step"
        )
