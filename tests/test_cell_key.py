"""A cell's key changes when, and only when, something changes that determines the answers.

Both directions are checked against what is really there: every part of an identity in a
``cell.yaml`` must be reached by a change below, and every option of a composed config must be
declared. A new part or option without a line here fails.
"""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from vtprune.harness.cell import prepare as settings
from vtprune.harness.request import benches, engine_tasks
from vtprune.harness.request import compose as wanted
from vtprune.harness.request import identity as cells
from vtprune.harness.request.device import Runtime
from vtprune.harness.request.request import Request
from vtprune.harness.store.cell import Store

ROOT = Path(__file__).resolve().parent.parent
TASKS = engine_tasks._root(None)  # of the installed engine
#: requests that have, together, every part an identity can have
REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {"method": "gprune"},
    "baseline": {"method": "none", "ratio": None},
    "subset": {"method": "fastv", "bench.subset": "10%"},
    "judge": {"method": "random", "bench": "mmbench_cn"},
    "prompt": {"method": "gprune", "bench": "textvqa_ocr", "model.prompt.lmms_eval": "qwen_vl",
               "model.prompt.system": "Be brief."},
    "vlmevalkit": {"method": "vispruner", "engine": "vlmevalkit",
                   "model.prompt.vlmevalkit": "llava"},
    "padded": {"method": "gprune", "model.processor.do_pad": True,
               "decoding.generation_config": "neutral"},
    "pixels": {"method": "gprune", "model": "qwen2_vl_7b"},
    "own files": {"method": "gprune", "bench": "lmms_eval:ai2d", "data": "hub",
                  "engine.include_path": str(TASKS / "ai2d")},
    "crops": {"method": "gprune", "model": "llava_next_7b",
              "model.processor.image_grid_pinpoints": [[336, 672]]},
}  # fmt: skip
RUNTIME = {"device": "cuda:0", "dtype": "float16", "attention": "sdpa", "threads": 1,
           "device_map": None}  # fmt: skip
DATA = {
    "cut": {"source": "hub", "truncated_images": "accept"},
    "mini": {"source": "mini", "seed": 0, "rows": 200, "content": "abc"},
    "folder": {"source": "hub", "content": "abc"},
    "hub": {"source": "hub", "dataset": "some/data", "revision": "c0ffee"},
    "table": {"source": "hub", "table": "SOME", "md5": "abc"},
}


@dataclass
class Inputs:
    """All that a cell is made from."""

    config: dict[str, Any]
    checkpoint: str = "f00d"
    model_type: str = "llava"
    runtime: dict[str, Any] = field(default_factory=lambda: dict(RUNTIME))
    data: dict[str, Any] = field(default_factory=lambda: dict(DATA["mini"]))
    clip: str | None = None

    def cell(self) -> cells.Cell:
        bench = benches.for_engine(
            self.config["bench"], self.config["engine"], self.config["model"]
        )
        config = {**self.config, "bench": bench}
        if config["method"]["name"] == "none":
            config["ratio"] = 0.0
        return cells.make(
            Request(config), checkpoint=self.checkpoint, model_type=self.model_type,
            runtime=Runtime(**self.runtime), data=self.data, clip=self.clip,
        )  # fmt: skip


def inputs(request: str, **changes: Any) -> Inputs:
    config = wanted.compose({"ratio": 0.5, **REQUESTS[request]})
    config["paths"] = {"results": "results"}
    kinds = {"pixels": "qwen2_vl", "crops": "llava_next"}
    return Inputs(config, **{"model_type": kinds.get(request, "llava"), **changes})


@pytest.fixture(autouse=True)
def both_engines_are_there(monkeypatch):
    """Versions as they are, and one for an engine that is not installed."""
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "1.0" if "vlmeval" in name else real(name)
    )


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Dotted name -> value of everything in a nested mapping."""
    if isinstance(value, dict) and value:
        found: dict[str, Any] = {}
        for key, inner in value.items():
            found |= leaves(inner, f"{name}.{key}" if name else str(key))
        return found
    return {name: value}


def put(path: str, value: Any) -> Callable[[Inputs], None]:
    def change(made: Inputs) -> None:
        *inner, last = path.split(".")
        place: Any = made
        for name in inner:
            place = place[name] if isinstance(place, dict) else getattr(place, name)
        if isinstance(place, dict):
            place[last] = value
        else:
            setattr(place, last, value)

    return change


def other(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, list):
        return [*value, 9]
    return 7 if value is None else f"{value}x"


# --- every part of an identity -------------------------------------------------------------------

#: part -> (a request that has it, what changes it); methods' options and versions follow below
CHANGES: dict[str, tuple[str, Callable[[Inputs], None]]] = {
    "format": ("plain", lambda made: None),  # a constant of the code, see the test
    "method.name": ("plain", put("config.method.name", "other")),
    "method.ratio": ("plain", put("config.ratio", 0.6)),
    "method.seed": ("plain", put("config.seed", 1)),
    "bench.name": ("plain", put("config.bench.name", "other")),
    "bench.task": ("plain", put("config.bench.engines.lmms_eval.task", "other")),
    "bench.limit": ("plain", put("config.bench.limit", 8)),
    "bench.indices": ("plain", put("config.bench.indices", [3])),
    "bench.subset.fraction": ("subset", put("config.bench.subset", "20%")),
    "bench.subset.seed": ("subset", put("config.bench.subset_seed", 1)),
    "bench.judge": ("judge", put("config.bench.judge", "other")),
    "bench.rule_judge": ("judge", put("config.bench.engines.lmms_eval.rule_judge", "other")),
    "bench.prompt_options.ocr": (
        "prompt", put("config.bench.engines.lmms_eval.prompt_options.ocr", False)
    ),
    "bench.wording": ("prompt", put("config.model.prompt.lmms_eval", "gpt4v")),
    "bench.files": ("own files", put("config.engine.include_path", str(TASKS / "mmstar"))),
    "engine": ("plain", put("config.engine.name", "vlmevalkit")),
    "system": ("prompt", put("config.model.prompt.system", "Be long.")),
    "decoding.max_new_tokens": ("plain", put("config.decoding.max_new_tokens", 8)),
    "decoding.generation_config": ("padded", put("config.decoding.generation_config", None)),
    "processor.do_pad": ("padded", put("config.model.processor.do_pad", False)),
    "processor.image_grid_pinpoints": (
        "crops", put("config.model.processor.image_grid_pinpoints", [[672, 336]])
    ),
    "processor.min_pixels": ("pixels", put("config.model.processor.min_pixels", 6272)),
    "processor.max_pixels": ("pixels", put("config.model.processor.max_pixels", 802816)),
    "processor.resize_min_pixels": (
        "pixels", put("config.model.processor.resize_min_pixels", 6272)
    ),
    "processor.resize_max_pixels": (
        "pixels", put("config.model.processor.resize_max_pixels", 401408)
    ),
    "processor.jpeg_quality": ("pixels", put("config.model.processor.jpeg_quality", 90)),
    # Rows of a batch are padded to one length: the last bits of their logits depend on it.
    "batch_size": ("plain", put("config.batch_size", 4)),
    "model.checkpoint": ("plain", put("checkpoint", "beef")),
    "model.model_type": ("plain", put("model_type", "llava_next")),
    "model.clip": ("plain", put("clip", "cafe")),
    "model.device": ("plain", put("runtime.device", "cpu")),
    "model.dtype": ("plain", put("runtime.dtype", "bfloat16")),
    "model.attention": ("plain", put("runtime.attention", "eager")),
    # The order of a sum on several threads, and so its last bits.
    "model.threads": ("plain", put("runtime.threads", 2)),
    **{f"data.{name}": ("plain", put(f"data.{name}", other(value)))
       for form in DATA.values() for name, value in form.items()},
}  # fmt: skip


def every_identity() -> dict[str, dict[str, Any]]:
    found = {name: inputs(name).cell().identity for name in REQUESTS}
    for form, data in DATA.items():
        found[f"data {form}"] = inputs("plain", data=dict(data)).cell().identity
    found["clip"] = inputs("plain", clip="f00d").cell().identity
    return found


def is_option(part: str) -> bool:
    return part.startswith("method.") and part not in CHANGES


def test_every_part_of_an_identity_has_a_change_that_is_tested():
    parts = {part for made in every_identity().values() for part in leaves(made)}
    fixed = {part for part in parts if not is_option(part) and not part.startswith("versions.")}
    assert fixed == set(CHANGES)
    assert {p for p in parts if p.startswith("versions.")} == {
        f"versions.{name}"
        for name in ("torch", "torchvision", "transformers", "tokenizers", "pillow", "lmms_eval",
                     "ms-vlmeval")
    }  # fmt: skip


def test_a_stored_cell_has_no_part_besides(tmp_path):
    """The identity in the cell.yaml of a request that is really prepared."""
    config = wanted.compose({"method": "gprune", "ratio": 0.5, "data.samples": 4})
    config["model"]["path"] = str(ROOT / "models" / "embedded" / "llava")
    config["paths"] = {"results": str(tmp_path)}
    prepared = settings.prepare(Request(config))
    store = Store(tmp_path, prepared.cell)
    store.open(config)
    stored = yaml.safe_load((store.folder / "cell.yaml").read_text(encoding="utf-8"))
    assert stored["key"] == prepared.cell.key
    known = {part for made in every_identity().values() for part in leaves(made)}
    assert set(leaves(stored["identity"])) <= known


@pytest.mark.parametrize("part", [part for part in CHANGES if part != "format"])
def test_each_part_changes_the_key(part):
    request, change = CHANGES[part]
    data = next((d for d in DATA.values() if part.removeprefix("data.") in d), DATA["mini"])
    before, after = (inputs(request, data=dict(data)) for _ in range(2))
    change(after)
    assert before.cell().key != after.cell().key
    was, now = leaves(before.cell().identity), leaves(after.cell().identity)
    changed = {name for name in {*was, *now} if was.get(name) != now.get(name)}
    assert part in changed
    if part != "engine":  # another engine has other tasks and packages, too
        assert changed == {part}


def test_the_format_changes_the_key(monkeypatch):
    before = inputs("plain").cell().key
    monkeypatch.setattr(cells, "FORMAT", cells.FORMAT + 1)
    assert inputs("plain").cell().key != before


@pytest.mark.parametrize("engine", ["lmms_eval", "vlmevalkit"])
def test_every_version_changes_the_key(monkeypatch, engine):
    request = "plain" if engine == "lmms_eval" else "vlmevalkit"
    before = inputs(request).cell()
    given = importlib.metadata.version
    for package in before.identity["versions"]:
        monkeypatch.setattr(
            importlib.metadata, "version",
            lambda name, p=package: "999" if name == p else given(name),
        )  # fmt: skip
        assert inputs(request).cell().key != before.key, package


METHODS = sorted(f.stem for f in (ROOT / "conf" / "method").glob("*.yaml"))


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("none", "custom")])
def test_every_option_of_every_method_changes_the_key(method):
    made = Inputs(wanted.compose({"method": method, "ratio": 0.5}))
    before = made.cell().key
    options = leaves({k: v for k, v in made.config["method"].items() if k != "name"})
    for option, value in options.items():
        changed = copy.deepcopy(made)
        put(f"config.method.{option}", other(value))(changed)
        assert changed.cell().key != before, option


# --- every option of a config --------------------------------------------------------------------

#: options that act through what is found (checkpoint, data, device), not by what they say
FOUND = {
    "model.path", "model.hub", "model.revision", "model.device", "model.dtype", "model.threads",
    "model.attention", "model.clip", "data.source", "data.seed", "data.samples",
    "data.truncated_images",
    "engine.include_path",  # by the contents of the files that are found there
    "bench.mini", "bench.engines.lmms_eval.folder", "bench.engines.lmms_eval.config",
    "bench.engines.lmms_eval.dataset", "bench.engines.lmms_eval.split",
}  # fmt: skip
#: names, places, how a run is organised, timed, planned, shown or scored
IRRELEVANT = {
    "task", "benches", "force", "debug", "progress", "paths.results",
    "image_size", "text_tokens",  # of budgets and timings; a budget acts through its ratio
    "model.name", "model.architecture", "model.weights",
    "model.device_map",  # which of several equal devices holds a layer
    "model.prompt.vlmevalkit",  # of the other engine
    "bench.label", "bench.metric", "bench.scale", "bench.unit", "bench.higher_is_better",
    "bench.maximum", "bench.others", "bench.reference", "bench.prompt", "bench.samples",
    "bench.subset_seed",  # without a subset
}  # fmt: skip
IRRELEVANT_GROUPS = (
    "sweep.", "cluster.", "budget.", "timing.", "logger.", "bench.engines.vlmevalkit.",
)  # fmt: skip
ANSWERING = {
    "ratio": 0.6, "seed": 1, "batch_size": 4, "decoding.max_new_tokens": 8, "engine.name": None,
    "model.prompt.lmms_eval": "qwen_vl", "model.prompt.system": "Be brief.",
    "model.chat_template": "llava", "model.preset": "lmms_eval", "model.processor.do_pad": True,
    "decoding.generation_config": "neutral",
    "bench.name": "other", "bench.limit": 8, "bench.indices": [3], "bench.subset": "10%",
    "bench.judge": "rule", "bench.engines.lmms_eval.task": "other",
}  # fmt: skip
VALID = {"model.prompt.vlmevalkit": "qwen2vl", "bench.others": {"x": {"scale": 1}}}


def options() -> dict[str, Any]:
    """Every option of the plain request's config, loggers included."""
    config = inputs("plain").config
    config["logger"] = yaml.safe_load(
        (ROOT / "conf" / "logger" / "wandb.yaml").read_text(encoding="utf-8")
    )
    return leaves(config)


def is_irrelevant(option: str) -> bool:
    return option in IRRELEVANT or option.startswith(IRRELEVANT_GROUPS)


def test_every_option_is_declared_as_answering_or_not():
    undeclared = [
        option for option in options()
        if not (option in ANSWERING or option in FOUND or option.startswith("method."))
        and not is_irrelevant(option)
    ]  # fmt: skip
    assert undeclared == []


@pytest.mark.parametrize("option", sorted({*ANSWERING} - {"engine.name"}))
def test_an_option_that_determines_answers_changes_the_key(option):
    made = inputs("plain")
    put(f"config.{option}", ANSWERING[option])(made)
    assert made.cell().key != inputs("plain").cell().key


@pytest.mark.parametrize("option", sorted(o for o in options() if is_irrelevant(o) or o in FOUND))
def test_an_option_that_determines_no_answer_leaves_the_key(option):
    made = inputs("plain")
    if option.startswith("logger."):
        made.config["logger"] = {}
    put(f"config.{option}", VALID.get(option, other(options()[option])))(made)
    assert made.cell().key == inputs("plain").cell().key


def test_which_of_several_devices_and_how_layers_are_spread_leave_the_key():
    before = inputs("plain").cell().key
    for change in (put("runtime.device", "cuda:3"), put("runtime.device_map", "auto")):
        made = inputs("plain")
        change(made)
        assert made.cell().key == before


def test_where_and_from_which_table_a_cell_is_asked_leaves_the_key(tmp_path):
    """Through the real path: another results folder, a copied checkpoint, a renamed model."""
    import shutil

    copied = tmp_path / "copy"
    shutil.copytree(ROOT / "models" / "embedded" / "llava", copied)
    keys = set()
    for results, path, name in (("a", ROOT / "models/embedded/llava", "embedded"),
                                ("b", copied, "renamed")):  # fmt: skip
        config = wanted.compose({"method": "gprune", "ratio": 0.5, "data.samples": 4})
        config["model"] |= {"path": str(path), "name": name}
        config["paths"] = {"results": str(tmp_path / results)}
        keys.add(settings.prepare(Request(config)).cell.key)
    assert len(keys) == 1


def test_a_spelling_leaves_the_key():
    for change in (put("config.ratio", 0.50), put("config.method.iterations", 5.0),
                   put("config.bench.subset", "100%")):  # fmt: skip
        made = inputs("plain")
        change(made)
        assert made.cell().key == inputs("plain").cell().key


def test_seeds_and_options_of_a_method_that_removes_nothing_leave_the_key():
    before = inputs("baseline").cell().key
    for path in ("config.seed", "config.method.positions"):
        made = inputs("baseline")
        put(path, "other")(made)
        assert made.cell().key == before
