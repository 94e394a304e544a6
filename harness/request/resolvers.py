"""What ``${repo:...}`` and ``${config_folders:}`` in conf/ mean to OmegaConf, once imported."""

from __future__ import annotations

from omegaconf import OmegaConf

from vtprune import places
from vtprune.harness.request import files

OmegaConf.register_new_resolver("repo", lambda name: str(places.path(name)), replace=True)
OmegaConf.register_new_resolver(
    "config_folders", lambda: [f"file://{folder}" for folder in files.folders()[1:]], replace=True
)
