"""What ``${repo:...}`` in conf/ means to OmegaConf; importing this module says it."""

from __future__ import annotations

from omegaconf import OmegaConf

from vtprune import places

OmegaConf.register_new_resolver("repo", lambda name: str(places.path(name)), replace=True)
