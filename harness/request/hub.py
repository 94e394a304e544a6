"""The Hugging Face hub: is it needed, is it there, which commit is meant.

One quick question is asked before anything heavy is imported, so that a machine without a network
gets one line at once instead of half a minute of retries.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtprune.harness.request.errors import ConfigError, HarnessError
from vtprune.harness.request.request import Task

TIMEOUT_S = 2.5
_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]


def _constants() -> Any:
    """What ``huggingface_hub`` has read from the environment: places, endpoint, offline mode."""
    from huggingface_hub import constants  # 10 ms, but only where the hub is meant

    return constants


def offline() -> bool:
    """True when the user told the Hugging Face libraries to stay off the network."""
    constants = _constants()
    datasets = os.environ.get("HF_DATASETS_OFFLINE", "").upper()
    return constants.HF_HUB_OFFLINE or datasets in constants.ENV_VARS_TRUE_VALUES


def go_offline() -> None:
    """Keep the libraries off the network, those that are loaded and those that are not yet."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    _constants().HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True


def _datasets_cache() -> Path:
    """As ``datasets`` has it; the package itself takes seconds to import."""
    default = Path(_constants().HF_HOME) / "datasets"
    return Path(os.environ.get("HF_DATASETS_CACHE", default)).expanduser()


class NotFetched(ConfigError):
    """Something is neither here nor within reach; ``instead`` is another way than fetching it."""

    def __init__(self, text: str, instead: str) -> None:
        super().__init__(f"{text}; {instead.removeprefix('or ')}")
        self.text, self.instead = text, instead

    def with_command(self, command: str) -> ConfigError:
        """The same, naming the command that fetches it."""
        return ConfigError(f"{self.text}; where there is a network run `{command}`, {self.instead}")


class Unreachable(Exception):
    """The hub did not answer (no network, offline mode, or a server error)."""


def _get(path: str, shown: str) -> dict[str, Any]:
    """JSON from the hub. ``Unreachable`` without a network, ConfigError for a wrong or gated id."""
    if offline():
        raise Unreachable("offline mode is on")
    from huggingface_hub.utils import build_hf_headers

    url = f"{_constants().ENDPOINT}/{path}"
    request = urllib.request.Request(url, headers=build_hf_headers())  # with the user's token
    try:
        return _in_time(request)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise ConfigError(
                f"hub: no access to {shown} (HTTP {error.code}): the id does not exist or is "
                "gated; accept its licence on the hub and run `hf auth login`"
            ) from error
        if error.code == 404:
            raise ConfigError(f"hub: {shown} does not exist (HTTP 404)") from error
        raise Unreachable(f"HTTP {error.code}") from error
    except (OSError, ValueError) as error:
        raise Unreachable(str(getattr(error, "reason", error))) from error


def _in_time(request: urllib.request.Request) -> dict[str, Any]:
    """The JSON answer, or TimeoutError; a name lookup has no time limit of its own."""
    outcome: list[Any] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                outcome.append(json.load(answer))
        except Exception as error:  # handed to the caller below
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    if not outcome:
        raise TimeoutError("no answer")
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def model_config(repo: str, revision: str | None) -> tuple[dict[str, Any], str | None]:
    """config.json and commit of a hub model, from the local cache if it is complete."""
    cached = _cached_model(repo, revision)
    if cached is not None:
        return json.loads((cached / "config.json").read_text(encoding="utf-8")), cached.name
    shown = f"model {repo}"
    try:
        info = _get(f"api/models/{repo}/revision/{revision or 'main'}", shown)
        config = _get(f"{repo}/resolve/{info['sha']}/config.json", shown)
    except Unreachable as error:
        raise NotFetched(
            f"{shown} is not in the local cache and the hub cannot be reached ({error})",
            "or give a local copy: model.path=DIR",
        ) from error
    return config, info["sha"]


def _cached_model(repo: str, revision: str | None) -> Path | None:
    """The snapshot of a model in the cache, None if it is not there with its weights."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(repo, "config.json", revision=revision)
    if not isinstance(file, str):
        return None
    folder = Path(file).parent
    return folder if any(folder.glob("*.safetensors")) else None


def download_model(repo: str, revision: str | None) -> Path:
    """Folder with the model's files; only what is missing is fetched."""
    cached = _cached_model(repo, revision)
    if cached is not None and not _missing_shards(cached):
        return cached
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=_FILES))
    except OSError as error:
        raise HarnessError(f"model {repo}: download failed: {error}") from error


def _missing_shards(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return sorted(name for name in names if not (folder / name).exists())


def configs(engine: Task) -> list[str | None]:
    """Configs of the data set that a benchmark reads: its own, and one of images if it has one."""
    return [engine.config, *([engine.images.config] if engine.images else [])]


def dataset_commit(
    dataset: str, revision: str | None, names: Sequence[str | None] = ()
) -> tuple[str, str | None]:
    """Commit of a hub data set, and a note if only the copy in the local cache can be had.

    The copy counts only if all configs in ``names`` are in it.
    """
    try:
        info = _get(f"api/datasets/{dataset}/revision/{revision or 'main'}", f"data set {dataset}")
        return info["sha"], None
    except Unreachable as error:
        cached = _cached_dataset(dataset, revision, names)
        if cached:
            go_offline()  # the libraries would try again for 20 s a data set
            return cached, f"hub not reachable: {dataset} is the cached commit {cached[:8]}"
        raise NotFetched(
            f"data=hub: {dataset} is not in the local cache and the hub cannot be reached "
            f"({error})",
            "or use data=mini",
        ) from error


def _cached_dataset(dataset: str, revision: str | None, names: Sequence[str | None]) -> str | None:
    base = _datasets_cache() / dataset.replace("/", "___")
    found = [p for p in base.glob("*/*/*/dataset_info.json") if len(p.parent.name) == 40]
    if revision:
        found = [p for p in found if p.parent.name == revision]
    there = {(p.parts[-4], p.parent.name) for p in found}
    whole = [p for p in found if all((n or "default", p.parent.name) in there for n in names)]
    return max(whole, key=lambda p: p.stat().st_mtime).parent.name if whole else None
