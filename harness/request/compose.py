"""What a cell of a table asks for, from conf/ alone: no Hydra, no torch, no network.

The same files that Hydra composes are read as plain data, so that a table can be planned on a
machine that has neither the checkpoint nor the data.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vtprune.harness.request import (
    benches,
    check,
    defaults,
    engine_tasks,
    known,
    method_options,
    own_class,
    words,
)
from vtprune.harness.request import identity as cell
from vtprune.harness.request.errors import ConfigError, did_you_mean, one_line

#: a reference that is more than a place on this machine
_REFERENCE = re.compile(r"\$\{(?!repo:[^${}]*\})")

_MACHINE = ("paths",)  # where things lie plays no part in a table


def compose(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The config of one cell as plain data.

    Args:
        overrides: groups (``method: gprune``) and dotted options (``method.threshold: 0.7``).

    Raises:
        ConfigError: a group has no such choice, or an option does not exist.
    """
    groups = known.groups()
    overrides = _with_own_bench(_with_own_method(overrides))
    chosen = {key: _choice(value) for key, value in overrides.items() if key in groups}
    config = defaults.compose("config", chosen).config
    for name in _MACHINE:
        config.pop(name, None)
    for key, value in overrides.items():
        if key not in groups:
            _set(config, key, value)
    made = _resolved(config)
    method_options.check(made["method"])
    return made


def _with_own_method(overrides: Mapping[str, Any]) -> Mapping[str, Any]:
    """``method: package.module:Class`` as the group entry that takes any class."""
    method = overrides.get("method")
    if not isinstance(method, str) or not words.is_target(method):
        return overrides
    return {**overrides, "method": "custom", "method._target_": method}


def _with_own_bench(overrides: Mapping[str, Any]) -> Mapping[str, Any]:
    """``bench: lmms_eval:TASK`` as the group entry that takes any task."""
    named = words.of_an_engine(str(overrides.get("bench")))
    if named is None:
        return overrides
    engine, task = named
    return {"engine": engine, **overrides, "bench": engine_tasks.NAMED,
            f"bench.engines.{engine}.task": task}  # fmt: skip


def options_of(name: str) -> Collection[str]:
    """Options of a method of conf/, or of a class."""
    if words.is_target(name):
        return own_class.options(name)
    return known.entries("method", name) or {}


def _choice(value: Any) -> str | None:
    return None if value is None else str(value)


def _resolved(config: dict[str, Any]) -> dict[str, Any]:
    """References to other entries replaced by what they mean; places on this machine stay."""
    if not any(_REFERENCE.search(text) for text in _texts(config)):
        return config
    from omegaconf import OmegaConf  # conf/ itself has none, and this takes a while to import
    from omegaconf.errors import OmegaConfBaseException

    from vtprune.harness.request import resolvers  # noqa: F401

    try:
        return OmegaConf.to_container(OmegaConf.create(config), resolve=True)  # type: ignore
    except OmegaConfBaseException as error:
        raise ConfigError(one_line(error)) from error


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else ():
        yield from _texts(inner)
    for inner in value if isinstance(value, list) else ():
        yield from _texts(inner)


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    place = config
    for name in path:
        place = place.get(name)
        if not isinstance(place, dict):
            raise _no_option(key, config)
    if last not in place and not (path == ["method"] and place.get("_target_")):
        raise _no_option(key, config)
    defaults.merge(place, {last: value}, key)


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
    if isinstance(label := config["method"].get("nominal"), int):
        return check.labelled_ratio(label)
    return None if config["ratio"] is None else float(config["ratio"])
