"""Load a VLM and its processor: safetensors only, no remote code, nothing chosen silently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vtprune.models import pictures
from vtprune.models import processor as processors
from vtprune.models.errors import ModelLoadError

_CACHE: dict[tuple[str, ...], VLM] = {}
_THREADS = torch.get_num_threads()


@dataclass(frozen=True)
class VLM:
    """A model ready to answer, with what it was loaded as.

    Attributes:
        prepare: what becomes of a picture (RGB, PIL) before the processor gets it.
    """

    model: Any
    processor: Any
    name: str
    device: str
    dtype: str
    attention: str = "sdpa"
    notes: tuple[str, ...] = ()
    prepare: pictures.Preparation = field(default_factory=pictures.Preparation)


def load(cfg: Mapping[str, Any]) -> VLM:
    """Load ``path`` with the given ``device``, ``dtype`` and ``attention``.

    Args:
        cfg: ``path`` (a checkpoint directory or hub id), ``name``, and optionally ``device``
            (``auto``: cuda where torch has one), ``dtype`` (``auto``: the checkpoint's half
            precision on cuda, float32 on cpu), ``attention``, ``revision`` and ``threads``
            (CPU threads of this process; None: torch decides), and ``device_map`` (``auto``: spread
            the layers over all devices with accelerate; None: the whole model on ``device``).
            ``chat_template`` (a file or the name of one that ships; None: the checkpoint's own).
            ``processor`` (options of ``model.processor``; those left out are the checkpoint's).
            ``weights="random"`` builds the file ``architecture`` with random weights instead and
            has no processor: it computes as much as the real model, and answers nonsense.

    The same settings give the same object again within one process, so that a sweep loads a model
    once.

    Raises:
        ModelLoadError: one line saying what is wrong.
    """
    random = cfg.get("weights", "checkpoint") == "random"
    path, revision = str(cfg["architecture" if random else "path"]), cfg.get("revision")
    device = _device(str(cfg.get("device", "auto")))
    attention = str(cfg.get("attention", "sdpa"))
    dtype = str(cfg.get("dtype", "auto"))
    torch.set_num_threads(int(cfg.get("threads") or _THREADS))
    spread, template = cfg.get("device_map"), cfg.get("chat_template")
    options = {k: v for k, v in (cfg.get("processor") or {}).items() if v is not None}
    told = (path, revision, device, dtype, attention, spread, random, template)
    key = (*map(str, told), str(sorted(options.items())))
    if key not in _CACHE:
        _CACHE.clear()  # one model at a time: two of them rarely fit on one device
        name = str(cfg.get("name", path))
        if random:
            _CACHE[key] = _random(path, device, dtype, attention, name)
        else:
            _CACHE[key] = _load(
                path, revision, device, dtype, attention, name, spread, template, options
            )
    return _CACHE[key]


def _device(asked: str) -> str:
    available = torch.cuda.is_available()
    if asked == "auto":
        return "cuda" if available else "cpu"
    if asked.startswith("cuda") and not available:
        raise ModelLoadError(
            f"device={asked}: a CUDA device was expected, but this torch cannot use one; "
            "say model.device=cpu to run on the CPU"
        )
    return asked


def _dtype(asked: str, device: str, path: str, revision: str | None) -> torch.dtype:
    if asked != "auto":
        return getattr(torch, asked)
    if device == "cpu":
        return torch.float32
    from transformers import AutoConfig

    stored = AutoConfig.from_pretrained(path, revision=revision).dtype
    return stored if stored in (torch.bfloat16, torch.float16) else torch.bfloat16


def _load(
    path: str,
    revision: str | None,
    device: str,
    dtype: str,
    attention: str,
    name: str,
    spread: Any = None,
    template: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> VLM:
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForImageTextToText

    where: dict[str, Any] = {"trust_remote_code": False}
    if revision:
        where["revision"] = revision
    if Path(path).is_dir():
        where["local_files_only"] = True
    try:
        wanted = _dtype(dtype, device, path, revision)
        config = pictures.configured(AutoConfig.from_pretrained(path, **where), options or {})
        _check_layers(config, path)
        processor, notes = processors.load(path, config, where, template)
        pictures.limit(processor, options or {})
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            path,
            config=config,
            dtype=wanted,
            attn_implementation=attention,
            use_safetensors=True,
            output_loading_info=True,
            **({"device_map": spread} if spread else {}),
            **where,
        )
        model, info = loaded
        model.eval()
        if not spread:
            model.to(device)
    except ModelLoadError:
        raise  # it has said what is wrong
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise ModelLoadError(f"cannot load {path}: {reason.strip()}") from error
    if missing := sorted(info["missing_keys"]):
        # The library would go on with random numbers in their place.
        raise ModelLoadError(
            f"cannot load {path}: {len(missing)} weights missing, e.g. {missing[0]}"
        )
    processor.tokenizer.padding_side = "left"  # generate() continues at the right end
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    made = VLM(
        model, processor, name, device, str(wanted).removeprefix("torch."), attention, notes,
        pictures.preparation(options or {}, config, processor),
    )  # fmt: skip
    processors.check(made)
    return made


def _check_layers(config: Any, path: str) -> None:
    """Refuse encoders whose features are several layers joined; a list of one is that one."""
    layers = getattr(config, "vision_feature_layer", None)
    if isinstance(layers, (list, tuple)) and len(layers) > 1:
        raise ModelLoadError(
            f"cannot load {path}: vision_feature_layer={list(layers)} joins several encoder "
            "layers; pruning is defined for one, vision_feature_layer=-2 say"
        )


def _random(path: str, device: str, dtype: str, attention: str, name: str) -> VLM:
    from transformers import AutoModelForImageTextToText

    from vtprune.models.describe import describe, hf_config

    config = hf_config(describe(path))
    half = config.dtype if config.dtype in (torch.bfloat16, torch.float16) else torch.bfloat16
    if dtype == "auto":
        wanted = torch.float32 if device == "cpu" else half
    else:
        wanted = getattr(torch, dtype)
    torch.manual_seed(0)
    with torch.device(device):  # initialised where it will run: billions of draws
        model = AutoModelForImageTextToText.from_config(
            config, dtype=wanted, attn_implementation=attention
        )
    model.eval().requires_grad_(False)
    return VLM(model, None, name, device, str(wanted).removeprefix("torch."), attention)
