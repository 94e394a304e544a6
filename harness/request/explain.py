"""Hydra's errors in one line, with the nearest existing name."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vtprune import places
from vtprune.harness.request import known
from vtprune.harness.request.errors import did_you_mean, one_line, unknown


def explain(error: Exception, argv: Sequence[str]) -> str | None:
    """One line for an error of config composition; None if the error is of another kind."""
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing_choice(error.missing_cfg_file, error.options or [])
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return None
    if found := re.search(r"Could not override '([^']+)'", str(error)):
        return _unknown_key(found[1], argv)
    if found := re.search(r"Ambiguous value for argument '([^']+)'", str(error)):
        return f"{found[1]} names several values: add -m to run one cell for each"
    if found := re.search(r"Missing mandatory value: (\S+)", str(error)):
        key = getattr(error, "full_key", "") or found[1]
        return f"{key} must be given, e.g. {key}=..."
    return one_line(error).partition(": ")[2] or one_line(error)


def _missing_choice(file: str, options: Sequence[str]) -> str:
    name = str(file).removesuffix(".yaml")
    if name.startswith("model/") and name.count("/") == 2:
        return _hub_id(name.removeprefix("model/"), options)
    group, _, choice = name.rpartition("/")
    return unknown(group or "config", choice, options)


def _hub_id(name: str, options: Sequence[str]) -> str:
    """A model was named by its hub id, which a config may know."""
    for option in options:
        if ((known.entries("model", option) or {}).get("hub") or "").lower() == name.lower():
            return f"model={name} is called model={option} here"
    return f"no config knows model={name}; take one of its family, e.g. model=llava15_7b, with " \
           f"model.hub={name} (available: {', '.join(options)})"  # fmt: skip


def _unreadable(override: str | None) -> str:
    shown = override or "?"
    if "=" not in shown:
        return f"cannot read '{shown}': expected key=value, e.g. method=gprune"
    return f"cannot read '{shown}': quote lists and special characters, e.g. 'bench.indices=[0,5]'"


def _unknown_key(key: str, argv: Sequence[str]) -> str:
    choices = known.defaults()
    for argument in argv:
        name, _, value = argument.partition("=")
        if name in choices and "," not in value:
            choices[name] = value
    return unknown_option(key, known.keys(choices), choices)


def unknown_option(key: str, valid: Sequence[str], choices: dict[str, str | None]) -> str:
    """One line for a key that does not exist."""
    group, dot, option = key.partition(".")
    if dot and group in choices:
        own = [k.removeprefix(f"{group}.") for k in valid if k.startswith(f"{group}.")]
        if group == "method" and option in ("ratio", "seed"):
            return f"{option} is an option of its own: write {option}=... instead of {key}=..."
        if group == "method" and option in known.UNLISTED.get(choices[group] or "", ()):
            return f"{option} stands in no config file, which takes a plus: write +{key}=..."
        if group == "method" and choices[group] == "custom":
            return f"options of your own method class need a plus: write +{key}=..."
        if group == "method":
            own = [k for k in own if k not in ("name", "_target_")]
            return unknown(f"option of method {choices[group]}", option, own)
        return unknown(f"option of {group}", option, own)
    top = [k for k in valid if "." not in k]
    inner = [k for k in valid if k.rpartition(".")[2] == key and "engines" not in k]
    near = f"; did you mean '{inner[0]}'?" if not dot and inner else ""
    near = near or (not dot and did_you_mean(key, top)) or did_you_mean(key, valid)
    return f"unknown option '{key}'{near} (`{places.command()} --help` lists them)"
