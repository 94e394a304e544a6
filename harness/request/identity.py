"""A cell: everything that determines the answers of one run, and the key made from it.

The key changes when, and only when, something that can change an answer changes. Where files lie,
how a table calls things, how the progress is shown: none of that is part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vtprune.harness.request import benches, own_class, presets, prompts, subset
from vtprune.harness.request.device import Runtime
from vtprune.harness.request.errors import ConfigError
from vtprune.harness.request.request import Config, Request

INSTALL = {
    "lmms_eval": "run: pip install -e .",
    "vlmevalkit": "run: pip install -e '.[vlmeval]' and then "
    "pip install --no-deps ms-vlmeval==0.0.20",
}
FORMAT = 1  # raise when the meaning of the identity changes
_ANSWERING_PACKAGES = ("torch", "torchvision", "transformers", "tokenizers", "pillow")
BUDGETS = ("flops", "mean_tokens", "latency")
_ENGINE_PACKAGES = {"lmms_eval": ("lmms_eval",), "vlmevalkit": ("ms-vlmeval", "vlmeval")}


@dataclass(frozen=True)
class Cell:
    """One run: ``identity`` determines the answers, ``labels`` name things for people.

    Attributes:
        identity: nested, JSON-able; hashed into :attr:`key`.
        labels: model, method, ratio, bench and data as shown in tables and directory names.
    """

    identity: dict[str, Any]
    labels: dict[str, Any] = field(compare=False)

    @property
    def canonical(self) -> str:
        """The identity as JSON with sorted keys and no spaces."""
        return canonical_json(self.identity)

    @property
    def key(self) -> str:
        """sha256 of the canonical identity."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()

    @property
    def key8(self) -> str:
        """First eight digits of the key, used in the directory name."""
        return self.key[:8]

    @property
    def directory(self) -> str:
        """Path below ``results/runs``: ``<bench>/<model>/<method>-<ratio>-<key8>``."""
        names = self.labels
        return f"{names['bench']}/{names['model']}/{names['method']}-{names['ratio']}-{self.key8}"


def canonical_json(value: Any) -> str:
    """JSON that is equal for equal values: sorted keys, no spaces, 1 and 1.0 alike."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def versions(engine: str) -> dict[str, str]:
    """Versions of the packages that can change an answer or its score."""
    from importlib.metadata import PackageNotFoundError, version

    found = {name: version(name).partition("+")[0] for name in _ANSWERING_PACKAGES}
    for name in _ENGINE_PACKAGES[engine]:  # the first one installed: they are names of one package
        try:
            return {**found, name: version(name).partition("+")[0]}
        except PackageNotFoundError:
            continue
    raise ConfigError(f"engine={engine} is not installed; {INSTALL[engine]}")


def engine_package(found: Mapping[str, str]) -> str:
    """Which of the packages in :func:`versions` is the engine's."""
    names = {name for packages in _ENGINE_PACKAGES.values() for name in packages}
    return next(name for name in found if name in names)


def make(
    request: Request,
    *,
    checkpoint: str,
    model_type: str,
    runtime: Runtime,
    data: dict[str, Any],
    clip: str | None = None,
) -> Cell:
    """The cell of a complete request.

    Args:
        request: its ratio is a number, its benchmark is as the engine sees it.
        checkpoint: fingerprint of the checkpoint files.
        model_type: its architecture.
        runtime: what will be used, from ``vtprune.harness.request.device.resolve``.
        data: identity of the data source.
        clip: fingerprint of the text tower's checkpoint, if the method reads the question with one.
    """
    identity = {
        "format": FORMAT,
        **asked(request.config, model_type),
        "model": {
            "checkpoint": checkpoint,
            "model_type": model_type,
            "device": runtime.kind,
            "dtype": runtime.dtype,
            "attention": runtime.attention,
            "threads": runtime.threads,  # the order of a sum, hence its last bits
            **({"clip": clip} if clip else {}),
        },
        "data": data,
        "versions": versions(request.engine),
    }
    labels = {
        "model": request.model.name,
        "method": identity["method"]["name"].rpartition(".")[2],
        "ratio": f"{request.ratio:g}",
        "bench": request.bench.name,
        "data": data["source"],
        "engine": request.engine,
    }
    return Cell(identity, labels)


def asked(config: Config, model_type: str | None = None) -> dict[str, Any]:
    """The part of the identity that the request alone determines, wherever it is run."""
    bench, engine = config["bench"], config["engine"]["name"]
    settings = presets.of(config, model_type)
    return {
        "method": method_identity(config),
        "bench": {
            "name": bench["name"],
            "task": bench["engines"][engine]["task"],
            "limit": bench.get("limit"),
            "indices": bench.get("indices"),
            **subset.identity(bench),
            **benches.scoring(bench, engine),
        },
        "engine": engine,
        **({"system": settings.system} if settings.system else {}),
        **({"processor": dict(settings.processor)} if settings.processor else {}),
        **({"chat_template": text} if (text := prompts.chat_template(config["model"])) else {}),
        "decoding": settings.decoding(),
        "batch_size": config["batch_size"],
    }


def method_identity(config: Config) -> dict[str, Any]:
    """A method with all its options, as cells and timings are keyed by it."""
    name = (config["method"].get("_target_") or config["method"]["name"]).replace(":", ".")
    if config["ratio"] == 0:
        # Nothing is removed, so no option of the method can matter: one baseline for all.
        return {"name": "none"} if name == "none" else {"name": name, "ratio": 0}
    options = method_options(config)
    return own_class.identity(config["method"], options) or {"name": name, **options}


def method_options(config: Config) -> dict[str, Any]:
    """Keyword arguments for ``methods.build``: the group's entries plus ratio and seed."""
    own = {k: v for k, v in config["method"].items() if k not in ("name", "_target_")}
    return {**own, "ratio": config["ratio"], "seed": config["seed"]}


def budget(config: Config) -> dict[str, Any] | None:
    """What a ratio was solved from, with the prompt it was solved on; None without a budget."""
    given = config.get("budget") or {}
    if not any(given.get(kind) is not None for kind in BUDGETS):
        return None
    asked_for = {k: v for k, v in given.items() if v is not None and k != "moved_from"}
    return {**asked_for, **{k: config.get(k) for k in ("image_size", "text_tokens")}}


def moved_from(config: Config) -> dict[str, Any]:
    """Options of the method that its budget moved, as they were asked for."""
    return dict((config.get("budget") or {}).get("moved_from") or {})
