"""Architecture files: a model's config without its weights. No torch at import.

``models/architectures/<name>.json`` holds ``config`` (the sizes of a checkpoint's config.json) and,
for encoders of native resolution, ``image_processor`` (their pixel limits). The config.json of a
checkpoint is an architecture file too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtprune.models.errors import ModelLoadError


@dataclass(frozen=True)
class Described:
    """An architecture file: the config's own keys, and what the image processor adds."""

    name: str
    config: dict[str, Any]
    image_processor: dict[str, Any]


def describe(path: str | Path) -> Described:
    """Read an architecture file, or the config.json of a checkpoint directory.

    Raises:
        ModelLoadError: there is no such file, or it is no architecture.
    """
    file = Path(path).expanduser()
    file = file / "config.json" if file.is_dir() else file
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"cannot read the architecture {file}: {error}") from error
    config = data.get("config", data)
    if "model_type" not in config:
        raise ModelLoadError(f"{file} is no architecture: it names no model_type")
    return Described(file.stem, config, data.get("image_processor", {}))


def hf_config(described: Described) -> Any:
    """The Hugging Face config object."""
    from transformers import AutoConfig

    values = {k: v for k, v in described.config.items() if k != "model_type"}
    return AutoConfig.for_model(described.config["model_type"], **values)
