"""Which CLIP checkpoint a run reads its question with, if its method reads one at all.

``model.clip`` names the checkpoint the model's vision tower came from: a folder, or a hub id with
an optional commit, ``org/name@revision``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vtprune.harness.request import checkpoint, hub, known
from vtprune.harness.request.errors import ConfigError
from vtprune.harness.request.request import Method, Request


@dataclass(frozen=True)
class Found:
    """A CLIP checkpoint on this machine, and what identifies its contents."""

    path: Path
    fingerprint: str


def wanted(method: Method) -> bool:
    """True for methods that compare patches with the question in CLIP's space.

    They have an option ``relevance``, whose value ``clip`` says so.
    """
    first = method.options.get("first")  # of a composed method
    inner = known.entries("method", str(first)) or {} if first else {}
    parts = [method.options, {**inner, **(method.options.get("first_options") or {})}]
    return any(part.get("relevance") == "clip" for part in parts)


def find(request: Request) -> Found | None:
    """The checkpoint for a run; None if its method reads none, or removes nothing.

    Raises:
        ConfigError: the model names none, or one that is not there; says what to do instead.
    """
    method, model = request.method, request.model
    if not wanted(method) or not request.ratio:
        return None
    name = model.clip
    if not name:
        raise ConfigError(
            f"method={method.name} reads the question with the text tower of the encoder's CLIP "
            f"checkpoint, and model={model.name} names none; use method.relevance=constant "
            "(a plain DPP), or model.clip=<folder or hub id> if the encoder is a CLIP one"
        )
    folder = Path(str(name)).expanduser()
    if folder.is_dir():
        made = Found(folder.resolve(), checkpoint.fingerprint(folder))
    else:
        made = _from_hub(str(name))
    if not any(made.path.glob("*.safetensors")):
        raise ConfigError(
            f"model.clip: {name} holds no *.safetensors (other weight formats are not loaded); "
            "name a commit that has them, model.clip=org/name@revision, or a converted folder"
        )
    return made


def _from_hub(name: str) -> Found:
    repo, _, revision = name.partition("@")
    if repo.count("/") != 1 or repo.startswith((".", "/", "~")):
        raise ConfigError(f"model.clip: no such checkpoint directory: {name}")
    _, commit = hub.model_config(repo, revision or None)
    path = hub.download_model(repo, commit or revision or None)
    return Found(path, f"{repo}@{commit or path.name}")
