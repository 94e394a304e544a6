"""What was asked for, typed: made once from a composed config, and all that other rooms see of it.

Classes mirror the groups of conf/; what an entry means is said there. Values are as written, checks
are in :mod:`vtprune.harness.request.check`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

Config = Mapping[str, Any]  # plain data, as it is read


class _Group:
    """A frozen dataclass that reads its fields from a mapping and leaves out what it has not."""

    @classmethod
    def of(cls, entries: Config | None) -> Self:
        given = entries or {}
        names = [f.name for f in fields(cls) if f.name in given]  # type: ignore[arg-type]
        return cls(**{name: given[name] for name in names})


@dataclass(frozen=True)
class Model(_Group):
    """An entry of conf/model."""

    name: str = ""
    path: str | None = None
    hub: str | None = None
    revision: str | None = None
    clip: str | None = None
    architecture: str | None = None
    weights: str = "checkpoint"
    device: str = "auto"
    device_map: str | None = None
    dtype: str = "auto"
    threads: int | None = None
    attention: str = "sdpa"
    chat_template: str | None = None
    preset: str | None = None
    processor: Config | None = None
    prompt: Config | None = None


@dataclass(frozen=True)
class Method:
    """An entry of conf/method: the name or the class, and options as the method takes them."""

    name: str = "none"
    target: str | None = None
    options: Config = field(default_factory=dict)

    @classmethod
    def of(cls, entries: Config) -> Self:
        options = {k: v for k, v in entries.items() if k not in ("name", "_target_")}
        return cls(entries.get("name", ""), entries.get("_target_"), options)

    @property
    def label(self) -> str:
        """Name in tables and paths: the configured one, or the class of an outside method."""
        return re.split("[.:]", str(self.target))[-1] if self.target else self.name


@dataclass(frozen=True)
class Images(_Group):
    """A table of images apart from the questions, joined by the column ``key``."""

    config: str = ""
    split: str = ""
    key: str = ""


@dataclass(frozen=True)
class Task(_Group):
    """A benchmark as one engine has it: ``engines.<name>`` of conf/bench."""

    task: str = ""
    folder: str = ""
    config: str | None = None
    dataset: str = ""
    split: str = ""
    table: str | None = None
    group: str | None = None
    question_id: str = "question_id"
    image_id: str = "image_id"
    score_of: str | None = None
    rule_judge: str | None = None
    wording: str | None = None
    prompt_options: Config | None = None
    images: Images | None = None
    processed: bool = False
    files: str | None = None
    local: str | None = None

    @classmethod
    def of(cls, entries: Config | None) -> Self:
        made = super().of({k: v for k, v in (entries or {}).items() if v is not None})
        images = (entries or {}).get("images")
        return replace(made, images=Images.of(images) if images else None)


@dataclass(frozen=True)
class Bench(_Group):
    """An entry of conf/bench, as the engine that runs it sees it."""

    name: str = ""
    label: str = ""
    metric: str = ""
    scale: float = 1
    unit: str = ""
    higher_is_better: bool = True
    maximum: float | None = None
    others: Config = field(default_factory=dict)
    judge: str | None = None
    mini: str | None = None
    reference: str | None = None
    limit: int | None = None
    indices: list[int] | None = None
    subset: Any = None
    subset_seed: int | None = None

    @property
    def scales(self) -> dict[str, float]:
        """Factor from the engine's number to the stated unit, for every metric it names."""
        others = {name: entry["scale"] for name, entry in (self.others or {}).items()}
        return {self.metric: self.scale, **others}


@dataclass(frozen=True)
class Data(_Group):
    """An entry of conf/data."""

    source: str = "mini"
    seed: int | None = None
    samples: int | None = None
    root: str | None = None
    revision: str | None = None
    truncated_images: str = "refuse"


@dataclass(frozen=True)
class Timing(_Group):
    """An entry of conf/timing."""

    images: list[str] | None = None
    repeats: int = 5
    settle: int = 1
    warmup: int = 1
    new_tokens: int = 16
    clock: str = "wall"
    batch_sizes: list[int] = field(default_factory=lambda: [1])


@dataclass(frozen=True)
class Budget(_Group):
    """``budget``: what a method may cost, instead of a ratio; ``moved_from`` once it is solved."""

    flops: float | None = None
    mean_tokens: float | None = None
    latency: float | None = None
    knobs: str | None = None
    convention: str = "flops"
    moved_from: Config | None = None


@dataclass(frozen=True)
class Logger(_Group):
    """An entry of conf/logger."""

    name: str = "none"
    mode: str = "offline"
    project: str | None = None
    entity: str | None = None
    group: str | None = None
    samples: int = 0
    overlays: bool = False
    timeout_s: float = 0


@dataclass(frozen=True)
class Sweep(_Group):
    """``sweep``: how the cells of a multirun are worked off."""

    group_by: str = "model"
    cells_per_job: int = 16
    share_vision: bool = False
    share_gb: float = 4
    lease_s: float = 120


@dataclass(frozen=True)
class Request:
    """All that a run needs to know of what was asked.

    Attributes:
        config: the composed config as plain data, as ``cell.yaml`` keeps it. Other rooms store it
            or hand it on; they look nothing up in it.
    """

    config: dict[str, Any]

    def changed(self, **entries: Any) -> Self:
        """Another request: top-level entries of the config replaced."""
        return type(self)({**self.config, **entries})

    def changed_in(self, group: str, **entries: Any) -> Self:
        """Another request: entries of a group replaced, ``changed_in("method", K=2)``."""
        return self.changed(**{group: {**(self.config.get(group) or {}), **entries}})

    @property
    def task(self) -> str:
        return self.config["task"]

    @property
    def ratio(self) -> float:
        """Share of the visual tokens to remove; once the request is complete, a number."""
        return self.config["ratio"]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def batch_size(self) -> int:
        return self.config["batch_size"]

    @property
    def image_size(self) -> str:
        return str(self.config["image_size"])

    @property
    def text_tokens(self) -> int:
        return self.config["text_tokens"]

    @property
    def engine(self) -> str:
        return self.config["engine"]["name"]

    @property
    def force(self) -> bool | str:
        return self.config.get("force", False)

    @property
    def debug(self) -> bool:
        return bool(self.config.get("debug"))

    @property
    def progress(self) -> bool | str:
        return self.config["progress"]

    @property
    def results(self) -> Path:
        return Path(self.config["paths"]["results"])

    @property
    def choices(self) -> Config:
        """Names under which the groups were chosen, as far as they are known."""
        return self.config.get("choices") or {}

    @cached_property
    def model(self) -> Model:
        return Model.of(self.config["model"])

    @cached_property
    def method(self) -> Method:
        return Method.of(self.config["method"])

    @cached_property
    def bench(self) -> Bench:
        return Bench.of(self.config["bench"])

    @cached_property
    def entry(self) -> Task:
        """The benchmark as the chosen engine has it."""
        return Task.of(self.config["bench"]["engines"][self.engine])

    @cached_property
    def data(self) -> Data:
        return Data.of(self.config["data"])

    @cached_property
    def budget(self) -> Budget:
        return Budget.of(self.config.get("budget"))

    @cached_property
    def timing(self) -> Timing:
        return Timing.of(self.config["timing"])

    @cached_property
    def logger(self) -> Logger:
        return Logger.of(self.config["logger"])

    @cached_property
    def sweep(self) -> Sweep:
        return Sweep.of(self.config.get("sweep"))
