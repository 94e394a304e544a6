"""A benchmark as one engine sees it: the file's common entries, and what the engine has instead."""

from __future__ import annotations

from typing import Any

from vtprune.harness.request import prompts
from vtprune.harness.request.errors import ConfigError

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
    if name not in bench["engines"]:
        known = ", ".join(bench["engines"])
        raise ConfigError(f"bench={bench['name']} has no engine={name} (it has: {known})")
    own = {**{k: v for k, v in engine.items() if k != "name"}, **bench["engines"][name]}
    if wording := prompts.wording(model or {}, name):
        own["wording"] = wording
    changed = {key: own[key] for key in OVERRIDABLE if key in own}
    return {**bench, **changed, "engines": {**bench["engines"], name: own}}


def scoring(bench: dict[str, Any], engine: str) -> dict[str, Any]:
    """What shapes prompts and scores beyond the task's name; part of a cell's identity."""
    entry = bench["engines"][engine]
    chosen = {
        "judge": bench.get("judge"),
        "rule_judge": entry.get("rule_judge"),
        "prompt_options": entry.get("prompt_options"),
        "wording": entry.get("wording"),
    }
    return {key: value for key, value in chosen.items() if value}


def scales(bench: dict[str, Any]) -> dict[str, float]:
    """Factor from the engine's number to the stated unit, for every metric the file names."""
    others = bench.get("others") or {}
    return {bench["metric"]: bench["scale"], **{k: v["scale"] for k, v in others.items()}}


def checkpoint_id(model: dict[str, Any], identity: dict[str, Any]) -> str:
    """The name published numbers know a checkpoint by: its hub id, or our name and its contents."""
    return str(model.get("hub") or f"{model['name']}@{identity['model']['checkpoint']}")
