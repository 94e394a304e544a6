"""Where a result comes from, beyond what determines its answers."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from vtprune import places
from vtprune.harness.request import fingerprint

_PACKAGES = (
    "torch", "torchvision", "transformers", "tokenizers", "lmms_eval", "datasets", "accelerate",
    "numpy", "pandas", "pillow", "hydra-core", "omegaconf",
)  # fmt: skip


def code(method: Mapping[str, Any]) -> dict[str, str | None]:
    """Fingerprints of the code that turns a prompt into an answer, as they are now.

    Recorded, not part of a cell's key: what a file of ours is called must not cost a week of
    compute. Comments and docstrings do not count, nor do methods that the cell does not use.

    Args:
        method: the config's group.

    Returns:
        ``code`` of the method, its parts and the files it builds on; ``runtime`` of models/.
    """
    try:
        own = fingerprint.of_method(method)
    except LookupError:  # a class without a file; the identity refuses it where it matters
        own = None
    return {"code": own, "runtime": fingerprint.of_runtime()}


def is_stale(recorded: Mapping[str, Any], method: Mapping[str, Any]) -> bool:
    """True if the code of a method or of the runtime is another than when this was recorded."""
    return any(recorded.get(part) != now for part, now in code(method).items())


def collect(device: str, method: Mapping[str, Any]) -> dict[str, Any]:
    """Versions, commit, fingerprints of the code (:func:`code`), and the kind of machine."""
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {
        **code(method),
        "commit": _git("rev-parse", "HEAD"),
        "modified": None if changes is None else bool(changes),
        "python": platform.python_version(),
        "platform": platform.system() + "-" + platform.machine(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "hardware": _hardware(device),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _hardware(device: str) -> dict[str, Any]:
    import torch

    if device.startswith("cuda"):
        return {"device": torch.cuda.get_device_name(torch.device(device))}
    return {"device": "cpu", "threads": torch.get_num_threads()}


def _git(*arguments: str) -> str | None:
    if places.CHECKOUT is None:  # installed, perhaps inside a repository of somebody else
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(places.ROOT), *arguments],
            capture_output=True,
            text=True,
            timeout=5,
            encoding="utf-8",
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
