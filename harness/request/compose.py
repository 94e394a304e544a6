"""What a cell of a table asks for, from conf/ alone: no Hydra, no torch, no network.

The same files that Hydra composes are read as plain data, so that a table can be planned on a
machine that has neither the checkpoint nor the data.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml

from vtprune import places
from vtprune.harness.request import benches, known
from vtprune.harness.request import identity as cell
from vtprune.harness.request.errors import ConfigError, did_you_mean, unknown

GROUPS = ("model", "method", "bench", "engine", "data", "timing")


def compose(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The config of one cell as plain data.

    Args:
        overrides: groups (``method: gprune``) and dotted options (``method.threshold: 0.7``).

    Raises:
        ConfigError: a group has no such choice, or an option does not exist.
    """
    config = copy.deepcopy(_root())
    for group in GROUPS:
        choice = overrides.get(group) or _defaults().get(group)
        config[group] = copy.deepcopy(_entry(group, str(choice)))
    _merge(config, _local())
    for key, value in overrides.items():
        if key not in GROUPS:
            _set(config, key, value)
    return config


@cache
def _root() -> dict[str, Any]:
    root = yaml.safe_load((places.CONF / "config.yaml").read_text())
    return {k: v for k, v in root.items() if k not in ("defaults", "hydra", "paths")}


@cache
def _defaults() -> dict[str, str | None]:
    return known.defaults(places.CONF)


@cache
def _local() -> dict[str, Any]:
    """Options of this machine; paths play no part in a table."""
    file = places.CONF / "local" / "default.yaml"
    content = yaml.safe_load(file.read_text()) if file.is_file() else None
    return {k: v for k, v in (content or {}).items() if k != "paths"}


@cache
def _entry(group: str, choice: str) -> dict[str, Any]:
    found = known.entries(places.CONF, group, choice)
    if found is None:
        raise ConfigError(unknown(group, choice, known.groups(places.CONF)[group]))
    return found


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    place = config
    for name in path:
        place = place.get(name)
        if not isinstance(place, dict):
            raise _no_option(key, config)
    if last not in place:
        raise _no_option(key, config)
    place[last] = value


def _no_option(key: str, config: Mapping[str, Any]) -> ConfigError:
    near = did_you_mean(key, known_options(config))
    return ConfigError(f"unknown option '{key}'{near} (python run.py --cfg job lists them)")


def known_options(config: Mapping[str, Any]) -> list[str]:
    """Dotted names of all options of a composed config."""
    return known.flatten(dict(config))


def asked(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a cell's identity that the request determines.

    Under a budget the ratio is solved for when the cell is run, with torch; here the budget itself
    stands in its place.
    """
    bench = benches.for_engine(config["bench"], config["engine"], config["model"])
    made = cell.asked({**config, "ratio": _ratio(config), "bench": bench})
    return {**made, "method": method_of(config)}


def method_of(config: dict[str, Any]) -> dict[str, Any]:
    """The method as :func:`asked` names it."""
    ratio = _ratio(config)
    made = cell.method_identity({**config, "ratio": ratio})
    return made if ratio is not None else {**made, "ratio": cell.budget(config)}


def _ratio(config: Mapping[str, Any]) -> float | None:
    if config["method"]["name"] == "none":
        return 0.0
    return None if config["ratio"] is None else float(config["ratio"])
