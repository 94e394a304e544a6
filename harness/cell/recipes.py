"""Recipes of FitPrune: where they lie, which one a config means, which data one is made on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vtprune.harness.request.errors import ConfigError

SEARCH_OPTIONS = ("fit_mode", "budget", "return_last_trial", "n_calibration")
#: mini data: calibration pictures come from another seed than those of the evaluation
SEED_OFFSET = 1000


def folder(results: Path) -> Path:
    """Where recipes are stored."""
    return results / "calibration" / "fitprune"


def resolve(
    config: dict[str, Any], fingerprint: str, results: Path, notes: list[str]
) -> dict[str, Any]:
    """Replace ``method.recipe=calibrated`` (or a file) by the recipe's numbers.

    Raises:
        ConfigError: there is no such recipe, or more than one; names the command or the choice.
    """
    method = config["method"]
    recipe = method.get("recipe")
    if method.get("name") != "fitprune" or not isinstance(recipe, str) or recipe == "published":
        return config
    if config["ratio"] == 0:
        return {**config, "method": {**method, "recipe": "published"}}
    if recipe == "calibrated":
        path = _find(config, fingerprint, results)
    else:
        path = Path(recipe).expanduser()
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        fractions = [float(f) for f in stored["fractions"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"method.recipe: {path} is no stored recipe ({error})") from error
    if stored["identity"]["checkpoint"] != fingerprint:
        raise ConfigError(f"method.recipe: {path.name} was calibrated for another checkpoint")
    notes.append(
        f"fitprune: recipe calibrated on {stored['samples']} samples of "
        f"{stored['identity']['bench']} ({stored['identity']['data']['source']}): {path.name}"
    )
    return {**config, "method": {**method, "recipe": fractions}}


def _find(config: dict[str, Any], fingerprint: str, results: Path) -> Path:
    wanted = {"checkpoint": fingerprint, "ratio": config["ratio"], **search_options(config)}
    found = []
    for path in sorted(folder(results).glob("*.json")):
        identity = json.loads(path.read_text(encoding="utf-8"))["identity"]
        if all(identity.get(key) == value for key, value in wanted.items()):
            found.append(path)
    if not found:
        raise ConfigError(
            f"method.recipe=calibrated: no recipe for this checkpoint at ratio={config['ratio']:g};"
            f" run: python run.py task=calibrate method=fitprune ratio={config['ratio']:g} "
            f"model={config['model']['name']}"
        )
    if len(found) > 1:
        names = ", ".join(str(path) for path in found)
        raise ConfigError(f"several recipes fit; choose one by method.recipe=FILE: {names}")
    return found[0]


def search_options(config: dict[str, Any]) -> dict[str, Any]:
    return {name: config["method"][name] for name in SEARCH_OPTIONS}


def calibration_data(config: dict[str, Any]) -> dict[str, Any]:
    """The config whose ``data`` and ``bench`` the calibration samples come from."""
    data, bench = dict(config["data"]), dict(config["bench"])
    if data["source"] == "mini":
        data["seed"] = int(data.get("seed") or 0) + SEED_OFFSET
    bench["indices"], bench["limit"] = None, config["method"]["n_calibration"]
    return {**config, "data": data, "bench": bench}
