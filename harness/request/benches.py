"""A benchmark as one engine sees it: the file's common entries, and what the engine has instead."""

from __future__ import annotations

from typing import Any

from vtprune.harness.request import engine_tasks, prompts
from vtprune.harness.request.errors import ConfigError
from vtprune.harness.request.request import Config, Model, Request

# Entries of conf/bench that an engine may state otherwise, because its scorer does.
OVERRIDABLE = ("metric", "scale", "unit", "maximum", "others", "judge", "prompt", "samples")


def for_engine(
    bench: dict[str, Any], engine: dict[str, Any], model: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The bench entry with the engine's own metric, scale, prompt and so on in place.

    Options of conf/engine and the wording the model asks for join the benchmark's entry for that
    engine.

    Raises:
        ConfigError: the benchmark does not exist in this engine, or the model's wording does not.
    """
    name = engine["name"]
    if bench["name"] == engine_tasks.NAMED:
        bench = engine_tasks.filled(bench, engine)
    if name not in bench["engines"]:
        known = ", ".join(bench["engines"])
        raise ConfigError(f"bench={bench['name']} has no engine={name} (it has: {known})")
    options = {k: v for k, v in engine.items() if k not in ("name", "include_path")}
    own = {**options, **bench["engines"][name]}
    if wording := prompts.wording(model or {}, name):
        own["wording"] = wording
    changed = {key: own[key] for key in OVERRIDABLE if key in own}
    return {**bench, **changed, "engines": {**bench["engines"], name: own}}


def seen_by_engine(request: Request) -> Request:
    """The request with :func:`for_engine`'s entry in the place of its benchmark's."""
    given = request.config
    return request.changed(bench=for_engine(given["bench"], given["engine"], given["model"]))


def scoring(bench: dict[str, Any], engine: str) -> dict[str, Any]:
    """What shapes prompts and scores beyond the task's name; part of a cell's identity."""
    entry = bench["engines"][engine]
    chosen = {
        "judge": bench.get("judge"),
        "rule_judge": entry.get("rule_judge"),
        "prompt_options": entry.get("prompt_options"),
        "wording": entry.get("wording"),
        "files": entry.get("files"),
    }
    return {key: value for key, value in chosen.items() if value}


def checkpoint_id(model: Model, identity: Config) -> str:
    """The name published numbers know a checkpoint by: its hub id, or our name and its contents."""
    return str(model.hub or f"{model.name}@{identity['model']['checkpoint']}")
