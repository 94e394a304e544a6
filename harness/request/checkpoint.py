"""Where a checkpoint lies, what architecture it is, and a fingerprint of its contents.

Nothing here imports torch or transformers: a wrong checkpoint is refused within a second.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtprune.harness.request import hub
from vtprune.harness.request.errors import ConfigError
from vtprune.harness.request.request import Model

WHOLE_FILE_LIMIT = 64 * 2**20  # larger files are hashed by header and evenly spread blocks
_BLOCKS, _BLOCK = 256, 4096
_ORIGINAL = {"mm_projector_type", "mm_vision_tower"}  # keys of LLaVA's own config.json
_ANSWERING = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory that exists and holds a supported architecture."""

    path: Path
    model_type: str
    config: dict[str, Any]
    source: str  # "local" or the hub id
    revision: str | None = None  # commit, hub only

    def fingerprint(self) -> str:
        """Short hash of everything in the checkpoint that shapes an answer."""
        if self.source != "local" and self.revision:
            return f"{self.source}@{self.revision}"
        return fingerprint(self.path)


def _supported() -> tuple[str, ...]:
    from vtprune.models.supported import SUPPORTED_MODEL_TYPES

    return SUPPORTED_MODEL_TYPES


def find(model: Model) -> Checkpoint:
    """The checkpoint of a ``conf/model`` entry; a hub model is downloaded by its commit.

    Raises:
        ConfigError: no such directory, not a checkpoint, unsupported, or not reachable.
    """
    if model.path:
        return _local(Path(str(model.path)).expanduser(), str(model.path))
    repo = model.hub
    if not repo:
        raise ConfigError("model.path: give a checkpoint directory (or model.hub=<org>/<name>)")
    revision = model.revision
    config, commit = hub.model_config(str(repo), revision)
    _check_type(config, str(repo))
    folder = hub.download_model(str(repo), commit or revision)
    return Checkpoint(folder, config["model_type"], config, str(repo), commit or folder.name)


def _local(path: Path, shown: str) -> Checkpoint:
    if not path.is_dir():
        raise ConfigError(f"model.path: no such checkpoint directory: {shown}")
    if not (path / "config.json").is_file():
        raise ConfigError(f"model.path: {shown} holds no config.json, so it is no checkpoint")
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"model.path: {shown}/config.json is not valid JSON: {error}") from error
    _check_type(config, shown)
    if not any(path.glob("*.safetensors")):
        raise ConfigError(
            f"model.path: {shown} holds no *.safetensors (other weight formats are not loaded)"
        )
    return Checkpoint(path.resolve(), config["model_type"], config, "local")


def _check_type(config: dict[str, Any], shown: str) -> None:
    kind = config.get("model_type")
    if "vision_config" not in config and _ORIGINAL & set(config):
        raise ConfigError(
            f"model: {shown} is in the original LLaVA format, which the library does not load; use "
            "the converted one of llava-hf/..., or convert it"
        )
    if kind not in _supported():
        raise ConfigError(
            f"model: unsupported architecture '{kind}' in {shown} "
            f"(supported model types: {', '.join(_supported())})"
        )


def fingerprint(folder: Path) -> str:
    """Hash over name, size and content of the files that shape answers; not of its location.

    Files above 64 MB are represented by their header and 256 blocks spread over the file: enough
    to tell two fine-tunes of one architecture apart without reading 14 GB.
    """
    files = sorted({f for pattern in _ANSWERING for f in folder.glob(pattern) if f.is_file()})
    parts = [(f.name, f.stat().st_size, _content(f)) for f in files]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _content(file: Path) -> str:
    real = file.resolve()
    if real.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", real.name):
        return real.name  # the hub cache names large files by their sha256
    size = file.stat().st_size
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        if size <= WHOLE_FILE_LIMIT:
            for block in iter(lambda: stream.read(2**20), b""):
                digest.update(block)
        else:
            digest.update(stream.read(min(size, 2**20)))
            for i in range(_BLOCKS):
                stream.seek((size - _BLOCK) * i // (_BLOCKS - 1))
                digest.update(stream.read(_BLOCK))
    return digest.hexdigest()
