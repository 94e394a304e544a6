"""A Hugging Face cache of its own for a test, in this process and in those it starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants


def settle(monkeypatch: pytest.MonkeyPatch, home: Path, endpoint: str | None = None) -> None:
    """An empty cache below ``home``, no offline mode, no token; the library has read its own."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.setenv(name, "")  # not delenv: a test may set it, and it must not stay
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(home))
    for name, value in (
        ("HF_HUB_OFFLINE", False), ("HF_HOME", str(home)), ("HF_HUB_CACHE", str(home / "hub")),
        ("HF_TOKEN_PATH", str(home / "token")),
    ):  # fmt: skip
        monkeypatch.setattr(constants, name, value)
    if endpoint is not None:
        ask(monkeypatch, endpoint)


def ask(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """The hub that is asked."""
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
