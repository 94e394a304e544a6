"""What may be written in a config: groups, their choices, and every key, read from conf/."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


def groups(conf: Path) -> dict[str, list[str]]:
    """Config groups and their choices; conf/table lists cells and is no part of one."""
    folders = sorted(p for p in conf.iterdir() if p.is_dir() and p.name not in ("hydra", "table"))
    return {f.name: sorted(p.stem for p in f.glob("*.yaml")) for f in folders}


def entries(conf: Path, group: str, choice: str) -> dict[str, Any] | None:
    """A group's file as plain data, with the files of its group that it includes."""
    file = conf / group / f"{choice}.yaml"
    if not file.is_file():
        return None  # from a searchpath outside this repository
    own = yaml.safe_load(file.read_text()) or {}
    merged: dict[str, Any] = {}
    for item in own.pop("defaults", []):
        if isinstance(item, str) and item != "_self_":
            merged |= entries(conf, group, item) or {}
    return merged | own


def keys(conf: Path, choices: Mapping[str, str | None]) -> list[str]:
    """Every dotted key that a config with these group choices may hold."""
    root = yaml.safe_load((conf / "config.yaml").read_text())
    root = {k: v for k, v in root.items() if k not in ("defaults", "hydra")}
    found = flatten(root)
    for group in groups(conf):
        choice = choices.get(group)
        if group in ("experiment", "local", "launcher") or not choice:
            continue
        found.append(group)
        own = entries(conf, group, choice)
        found += flatten(own or {}, f"{group}.")
    return found


def defaults(conf: Path) -> dict[str, str | None]:
    """The choice of each group when the command line names none."""
    root = yaml.safe_load((conf / "config.yaml").read_text())
    pairs = [item for item in root["defaults"] if isinstance(item, dict)]
    named = {key: choice for pair in pairs for key, choice in pair.items()}
    named = {key: c for key, c in named.items() if not key.startswith("override ")}
    return {key.removeprefix("optional ").partition("@")[0]: c for key, c in named.items()}


def flatten(config: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of all entries, inner nodes included."""
    keys = []
    for key, value in config.items():
        keys.append(prefix + str(key))
        if isinstance(value, dict):
            keys += flatten(value, f"{prefix}{key}.")
    return keys
