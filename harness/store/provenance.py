"""Where a result comes from, beyond what determines its answers."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from vtprune import places

_PACKAGES = (
    "torch", "torchvision", "transformers", "tokenizers", "lmms_eval", "datasets", "accelerate",
    "numpy", "pandas", "pillow", "hydra-core", "omegaconf",
)  # fmt: skip


def code_hash() -> str:
    """Hash of the sources that turn a prompt into an answer: methods/ and models/.

    Recorded, not part of a cell's key: a corrected comment should not cost a week of compute.
    """
    digest = hashlib.sha256()
    for folder in ("methods", "models"):
        for file in sorted((places.ROOT / folder).rglob("*.py")):
            digest.update(file.relative_to(places.ROOT).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def collect(device: str) -> dict[str, Any]:
    """Versions, commit, and the kind of machine."""
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "code": code_hash(),
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
