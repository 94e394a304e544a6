"""Tasks of lmms-eval by name, read from its task files without importing it.

``bench=lmms_eval:TASK`` runs any task of the installed engine, or of a folder of one's own
(``engine.include_path``), with the metric the task names first. What is needed before the engine is
imported stands in its YAML files: data set, split, metric, kind of output.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from vtprune.harness.request import known
from vtprune.harness.request.errors import ConfigError, did_you_mean

#: the name in conf/bench that takes any task
NAMED = "named"
_TASK = re.compile(r"""^task:[ \t]*["']?([^"'\s#\[]+)""", re.MULTILINE)
_GROUP = re.compile(r"""^group:[ \t]*["']?([^"'\s#]+)""", re.MULTILINE)


@dataclass(frozen=True)
class Found:
    """A task as its file has it.

    Attributes:
        folder: that holds the file, for the engine's own index.
        dataset, config, split: of the data set that is asked about.
        local: files of the data set where it lies on this machine.
        metric: the first one the task names.
    """

    task: str
    folder: Path
    dataset: str
    config: str | None
    split: str
    metric: str
    higher_is_better: bool
    local: tuple[Path, ...] = ()


def find(task: str, include_path: str | None = None) -> Found:
    """The task of that name.

    Raises:
        ConfigError: no such task (names the nearest), a group of tasks, no free answers, or no such
            folder.
    """
    files = _files(include_path)
    if task not in files:
        groups = _groups(include_path)
        if task in groups:
            inside = ", ".join(sorted(groups[task])[:6])
            raise ConfigError(f"bench=lmms_eval:{task} is a group of tasks; name one: {inside}")
        near = did_you_mean(task, files)
        raise ConfigError(f"unknown task of lmms-eval '{task}'{near} ({len(files)} tasks there)")
    file = files[task]
    content = _content(file)
    kind = content.get("output_type", "generate_until")
    if kind != "generate_until":
        raise ConfigError(
            f"bench=lmms_eval:{task} wants {kind}; only free answers (generate_until) are run here"
        )
    metrics = content.get("metric_list") or []
    split = content.get("test_split") or content.get("validation_split")
    if not metrics or not split or not content.get("dataset_path"):
        raise ConfigError(f"{file}: a task needs dataset_path, test_split and metric_list")
    return Found(
        task, file.parent, str(content["dataset_path"]), content.get("dataset_name"), str(split),
        str(metrics[0]["metric"]), bool(metrics[0].get("higher_is_better", True)),
        _local(content),
    )  # fmt: skip


def _local(content: Mapping[str, Any]) -> tuple[Path, ...]:
    """Data files that a task names by path."""
    given = (content.get("dataset_kwargs") or {}).get("data_files") or ()
    listed = list(given.values()) if isinstance(given, dict) else given
    flat = [listed] if isinstance(listed, str) else listed
    names = [name for one in flat for name in ([one] if isinstance(one, str) else one)]
    found = [Path(str(name)).expanduser() for name in names if "://" not in str(name)]
    if missing := [file for file in found if not file.is_file()]:
        raise ConfigError(f"bench=lmms_eval:{content['task']}: no such data file: {missing[0]}")
    return tuple(found)


def filled(bench: dict[str, Any], engine: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a named benchmark with what its task file says.

    Args:
        bench: conf/bench/named with the name of a task in its entry for the engine.
        engine: conf/engine.

    Raises:
        ConfigError: as :func:`find`, or no task is named.
    """
    name = engine["name"]
    entry = bench["engines"][name]
    task = entry.get("task")
    if not task:
        raise ConfigError("bench=named takes a task: bench=lmms_eval:TASK or vlmevalkit:DATASET")
    said = {"name": str(task).replace("/", "_"), "label": bench.get("label") or str(task)}
    if name != "lmms_eval":
        own = {**entry, "table": task, "dataset": task}
        said["metric"] = bench.get("metric") or "Overall"
        return {**bench, **said, "engines": {**bench["engines"], name: own}}
    found = find(str(task), engine.get("include_path"))
    said["mini"] = bench.get("mini") or _drawn(str(task))
    own = {
        **entry, "folder": str(found.folder), "dataset": found.dataset, "config": found.config,
        "split": found.split,
    }  # fmt: skip
    if engine.get("include_path"):
        own["files"] = digest(str(engine["include_path"]))
    if found.local:
        own["local"] = _contents(found.local)
    return {
        **bench, **said, "metric": bench.get("metric") or found.metric,
        "higher_is_better": found.higher_is_better,
        "engines": {**bench["engines"], name: own},
    }  # fmt: skip


def _drawn(task: str) -> str | None:
    """Drawn rows of a task that conf/bench has under another name."""
    for name in known.choices("bench"):
        entry = known.entries("bench", name) or {}
        if entry.get("engines", {}).get("lmms_eval", {}).get("task") == task:
            return entry.get("mini")
    return None


def digest(folder: str) -> str:
    """Hash of names and contents of the task files of a folder of one's own."""
    root, made = _folder(folder), hashlib.sha256()
    for file in sorted(f for f in root.rglob("*") if f.is_file() and _is_code(f)):
        made.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return made.hexdigest()[:16]


def _contents(files: tuple[Path, ...]) -> str:
    made = hashlib.sha256()
    for file in files:
        made.update(file.name.encode() + b"\0" + file.read_bytes())
    return made.hexdigest()[:16]


def _is_code(file: Path) -> bool:
    return file.suffix in (".yaml", ".yml", ".py", "") and "__pycache__" not in file.parts


def _folder(folder: str) -> Path:
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ConfigError(f"engine.include_path: no such folder: {folder}")
    return root.resolve()


def _root(include_path: str | None) -> Path:
    if include_path:
        return _folder(include_path)
    spec = importlib.util.find_spec("lmms_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("engine=lmms_eval is not installed")
    return Path(next(iter(spec.submodule_search_locations))) / "tasks"


@cache
def _texts(root: Path) -> dict[Path, str]:
    return {file: file.read_text(encoding="utf-8", errors="replace")
            for file in sorted(root.rglob("*.yaml"))}  # fmt: skip


def _files(include_path: str | None) -> dict[str, Path]:
    """Task -> file; a folder of one's own first, then the engine's."""
    found: dict[str, Path] = {}
    for root in ([include_path] if include_path else []) + [None]:
        for file, text in _texts(_root(root)).items():
            if match := _TASK.search(text):
                found.setdefault(match[1], file)
    return found


def _groups(include_path: str | None) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for root in ([include_path] if include_path else []) + [None]:
        for text in _texts(_root(root)).values():
            group, task = _GROUP.search(text), _TASK.search(text)
            if group and task:
                found.setdefault(group[1], []).append(task[1])
            elif group:
                content = yaml.load(text, _Loader) or {}
                inside = [one for one in content.get("task") or [] if isinstance(one, str)]
                found.setdefault(group[1], []).extend(inside)
    return found


def _content(file: Path) -> dict[str, Any]:
    """A task file with what it includes, functions left out."""
    own = yaml.load(file.read_text(encoding="utf-8"), _Loader) or {}
    included = own.pop("include", None) or []
    merged: dict[str, Any] = {}
    for name in [included] if isinstance(included, str) else included:
        place = Path(name) if Path(name).is_absolute() else file.parent / name
        if not place.is_file():
            raise ConfigError(f"{file} includes {name}, which is not there")
        merged |= _content(place)
    return {**merged, **own}


class _Loader(yaml.SafeLoader):
    """Reads task files; ``!function module.name`` stays a text."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: f"!{suffix}")
