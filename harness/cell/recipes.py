"""Recipes of FitPrune: where they lie, which one a config means, which data one is made on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vtprune.harness.request.errors import ConfigError
from vtprune.harness.request.request import Method, Request

SEARCH_OPTIONS = ("fit_mode", "budget", "return_last_trial", "n_calibration")
#: mini data: calibration pictures come from another seed than those of the evaluation
SEED_OFFSET = 1000


def folder(results: Path) -> Path:
    """Where recipes are stored."""
    return results / "calibration" / "fitprune"


def resolve(request: Request, fingerprint: str, notes: list[str]) -> Request:
    """Replace ``method.recipe=calibrated`` (or a file) by the recipe's numbers.

    Args:
        fingerprint: of the checkpoint.
        notes: gets a line that says which recipe it is.

    Raises:
        ConfigError: there is no such recipe, or more than one; names the command or the choice.
    """
    method = request.method
    recipe = method.options.get("recipe")
    if method.name != "fitprune" or not isinstance(recipe, str) or recipe == "published":
        return request
    if request.ratio == 0:
        return with_recipe(request, "published")
    path = _find(request, fingerprint) if recipe == "calibrated" else Path(recipe).expanduser()
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
    return with_recipe(request, fractions)


def with_recipe(request: Request, recipe: Any) -> Request:
    """The request with ``method.recipe`` replaced."""
    return request.changed_in("method", recipe=recipe)


def _find(request: Request, fingerprint: str) -> Path:
    wanted = {"checkpoint": fingerprint, "ratio": request.ratio, **search_options(request.method)}
    found = []
    for path in sorted(folder(request.results).glob("*.json")):
        identity = json.loads(path.read_text(encoding="utf-8"))["identity"]
        if all(identity.get(key) == value for key, value in wanted.items()):
            found.append(path)
    if not found:
        raise ConfigError(
            f"method.recipe=calibrated: no recipe for this checkpoint at ratio={request.ratio:g};"
            f" run: python run.py task=calibrate method=fitprune ratio={request.ratio:g} "
            f"model={request.model.name}"
        )
    if len(found) > 1:
        names = ", ".join(str(path) for path in found)
        raise ConfigError(f"several recipes fit; choose one by method.recipe=FILE: {names}")
    return found[0]


def search_options(method: Method) -> dict[str, Any]:
    """The options of FitPrune that shape a search."""
    return {name: method.options[name] for name in SEARCH_OPTIONS}


def calibration_data(request: Request) -> Request:
    """The request whose ``data`` and ``bench`` the calibration samples come from."""
    limit = request.method.options["n_calibration"]
    made = request.changed_in("bench", indices=None, limit=limit)
    if request.data.source != "mini":
        return made
    return made.changed_in("data", seed=int(request.data.seed or 0) + SEED_OFFSET)
