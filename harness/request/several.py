"""``bench=[textvqa,gqa]``: several benchmarks in one job, one model load, a cell each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vtprune.harness.request import check, resolvers  # noqa: F401
from vtprune.harness.request.errors import ConfigError
from vtprune.harness.request.request import Request

_LIST = re.compile(r"^bench=\[(?P<names>[^\]]*)\]$")
_OURS = ("bench=", "benches=")


def arguments(given: Sequence[str]) -> list[str]:
    """The command line with a list of benchmarks as Hydra can take it.

    A config group has one choice, so the first name goes there and the list beside it.

    Raises:
        ConfigError: an empty list, or a name twice.
    """
    made: list[str] = []
    for argument in given:
        match = _LIST.match(argument.strip())
        if not match:
            made.append(argument)
            continue
        names = [name.strip().strip("'\"") for name in match["names"].split(",")]
        if not all(names):
            raise ConfigError("bench=[...] must list names, e.g. 'bench=[textvqa,gqa]'")
        if len(set(names)) != len(names):
            raise ConfigError(f"bench=[{','.join(names)}] names a benchmark twice")
        made += [f"bench={names[0]}", f"benches=[{','.join(names)}]"]
    return made


@dataclass(frozen=True)
class Part:
    """One benchmark of a job: its composed config and the choices of the config groups."""

    bench: str
    config: DictConfig
    choices: dict[str, str | None]

    def request(self) -> Request:
        """What the part asks for.

        Raises:
            ConfigError: an entry that nothing reads.
        """
        config = plain(self.config)
        check.check_keys(config, self.choices)
        check.check_values(config)
        named = {group: self.choices.get(group) for group in ("model", "bench")}
        return Request({**config, "choices": named})


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A composed config as plain data, references replaced by what they mean.

    Raises:
        OmegaConfBaseException: a value is missing, or a reference leads nowhere.
    """
    found = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def parts(cfg: DictConfig) -> list[Part]:
    """The job's benchmarks; one, unless a list was given."""
    choices = dict(HydraConfig.get().runtime.choices)
    if not cfg.get("benches"):
        return [Part(cfg.bench.name, cfg, choices)]
    common = [o for o in HydraConfig.get().overrides.task if not o.startswith(_OURS)]
    return [
        Part(name, compose("config", [*common, f"bench={name}"]), {**choices, "bench": name})
        for name in cfg.benches
    ]
