"""Is the request possible? What can be said without a look at a file, a checkpoint or a network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from vtprune.harness.request import explain, known, method_options, subset
from vtprune.harness.request.errors import ConfigError, unknown
from vtprune.harness.request.known import flatten
from vtprune.harness.request.request import Config, Request

RETRY = "failed"  # force=failed: samples that failed are asked again, the others kept
STALE = "stale"  # force=stale: cells whose code changed since are run again

#: methods.counts has the same, behind torch, which has no place here
LABELLED_TOKENS = 576
TASKS = ("cell", "calibrate", "profile", "time", "score")
DATALESS_TASKS = ("profile", "time")  # they need sizes of images, not a benchmark


def check_task(task: str) -> None:
    if task not in TASKS:
        raise ConfigError(unknown("task", task, TASKS))


def completed(request: Request, sweep: bool, notes: list[str]) -> Request:
    """The request with its ratio a number: the control's, the label's, or the one given.

    Args:
        sweep: part of a multirun, in which ``method=none`` meets ratios meant for the others.
        notes: gets a line where something else is taken than what was written.

    Raises:
        ConfigError: no ratio that this method can have.
    """
    return request.changed(ratio=ratio_of(request.config, sweep, notes))


def ratio_of(config: Config, sweep: bool, notes: list[str]) -> float:
    ratio, method = config["ratio"], config["method"]["name"]
    if method == "text_only":
        return _everything(ratio, sweep, notes)
    if (label := config["method"].get("nominal")) is not None:
        return _labelled(label, ratio, notes)
    if ratio is None:
        if method != "none":
            raise ConfigError(f"method={method} needs a ratio in [0, 1), e.g. ratio=0.9")
        return 0.0
    number = isinstance(ratio, (int, float)) and not isinstance(ratio, bool)
    if not number or not math.isfinite(ratio) or not 0 <= ratio < 1:
        raise ConfigError(f"ratio must be a number in [0, 1): got {ratio!r}{_meant(ratio)}")
    if method == "none" and ratio != 0:
        if not sweep:
            raise ConfigError(f"method=none removes nothing, so ratio={ratio} cannot be met; "
                              "leave ratio out, or choose a method")  # fmt: skip
        notes.append(f"method=none has no ratio: ratio={ratio} is left out, this is the baseline")
        return 0.0
    return float(ratio)


def _meant(ratio: Any) -> str:
    """What a ratio that cannot be may have been meant as."""
    if isinstance(ratio, list):
        return f"; several are a sweep: -m ratio={','.join(map(str, ratio))}"
    text = str(ratio).strip().removesuffix("%")
    try:
        percent = float(text)
    except ValueError:
        return ""
    return f"; did you mean {percent / 100:g}?" if 1 < percent < 100 else ""


def _everything(ratio: Any, sweep: bool, notes: list[str]) -> float:
    """The ratio of the control without a picture, whatever the others of a sweep have."""
    if ratio not in (None, 1):
        if not sweep:
            raise ConfigError(f"method=text_only leaves the picture out, so ratio={ratio} cannot "
                              "be met; leave ratio out")  # fmt: skip
        notes.append(f"method=text_only has no ratio: ratio={ratio} is left out, this is 1")
    return 1.0


def _labelled(label: Any, ratio: Any, notes: list[str]) -> float:
    """The ratio that a published label stands for, which is not what such a run removes."""
    tokens = LABELLED_TOKENS
    if not isinstance(label, int) or isinstance(label, bool) or not 0 < label < tokens:
        raise ConfigError(f"method.nominal must be a label in (0, {tokens}), got {label!r}")
    named = labelled_ratio(label)
    if ratio is not None and abs(ratio - named) > 0.001:
        raise ConfigError(f"method.nominal={label} is ratio {named} by its label, not {ratio}; "
                          "leave ratio out")  # fmt: skip
    notes.append(f"nominal={label}: ratio={named} is the label; `removed` says what was removed")
    return named


def labelled_ratio(label: int) -> float:
    """The ratio that a run under a label of the published tables is known by."""
    return round(1 - label / LABELLED_TOKENS, 4)


def check_numbers(config: Config) -> None:
    if config["force"] not in (False, True, RETRY, STALE):
        raise ConfigError(
            f"force must be false, true, {RETRY} or {STALE}: got {config['force']!r}"
        )
    bench = config["bench"]
    whole("batch_size", config["batch_size"], 1)
    if (limit := config["decoding"]["max_new_tokens"]) is not None:
        whole("decoding.max_new_tokens", limit, 1)
    whole("seed", config["seed"], 0)
    subset.check(bench)
    limit, indices = bench.get("limit"), bench.get("indices")
    if limit is not None:
        whole("bench.limit", limit, 1)
    if indices is None:
        return
    if limit is not None:
        raise ConfigError("give bench.limit or bench.indices, not both")
    if not isinstance(indices, list) or not indices:
        raise ConfigError("bench.indices must be a list of row numbers, e.g. 'bench.indices=[0,5]'")
    for index in indices:
        whole("bench.indices", index, 0)
    if len(set(indices)) != len(indices):
        raise ConfigError("bench.indices names a row twice")


def whole(name: str, value: Any, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigError(f"{name} must be a whole number >= {low}: got {value!r}")


def unknown_keys(config: dict[str, Any], known: Iterable[str]) -> list[str]:
    """Dotted keys of ``config`` that are not among ``known`` (dotted keys, groups included)."""
    allowed = set(known)
    return [key for key in flatten(config) if key not in allowed]


def check_keys(config: dict[str, Any], choices: dict[str, str | None]) -> None:
    """Refuse keys that nothing reads, e.g. a typo in an experiment file or behind a ``+``."""
    unlisted = known.UNLISTED.get(config["method"]["name"], ())
    valid = [*known.keys(choices), *(f"method.{option}" for option in unlisted)]
    groups = known.groups()
    free = [group for group in groups if _is_free(group, choices.get(group), config)]
    for key in unknown_keys(config, valid):
        if key.partition(".")[0] not in free and not _inside_a_mapping(key, valid):
            raise ConfigError(explain.unknown_option(key, valid, choices))


def check_values(config: dict[str, Any]) -> None:
    """Refuse values that an option of a method cannot have, before torch is imported."""
    method_options.check(config["method"])


def _inside_a_mapping(key: str, valid: Sequence[str]) -> bool:
    """True below an option that is a mapping of its own, as the options of a composed method."""
    parent = key.rpartition(".")[0]
    return "." in parent and parent in valid


def _is_free(group: str, choice: str | None, config: dict[str, Any]) -> bool:
    """True if the keys of a group are not ours to know: own method classes, outside files."""
    if group == "method" and (
        config["method"].get("_target_")
        or config["method"]["name"] not in known.groups()["method"]  # by an entry point
    ):
        return True  # methods.build knows them, and names the nearest
    return choice is not None and known.entries(group, choice) is None
