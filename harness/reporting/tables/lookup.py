"""Find the cells of a table in the store, and say what is odd about each.

A stored cell belongs to a wanted one if it answers the same request with the same checkpoint. Under
which versions, on which device and from which data it was computed is then compared within the
table: cells that differ from the rest are marked, never mixed in silence.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from vtprune.harness.reporting.tables import gate
from vtprune.harness.reporting.tables.spec import Table, Wanted
from vtprune.harness.reporting.tables.sweeps import Sweeps
from vtprune.harness.request import checkpoint
from vtprune.harness.request.errors import ConfigError
from vtprune.harness.request.identity import budget as cell_budget
from vtprune.harness.request.identity import canonical_json, engine_package, moved_from
from vtprune.harness.store import index
from vtprune.harness.sweep import status
from vtprune.models.describe import describe
from vtprune.models.errors import ModelLoadError
from vtprune.places import CONF

DONE, RUNNING, FAILED, MISSING, IMPOSSIBLE = "done", "running", "failed", "missing", "impossible"
#: what the states of a sweep are called in a table
_STATUS = {
    status.RUNNING: RUNNING, status.FAILED: FAILED, status.INTERRUPTED: FAILED,
    status.WAITING: MISSING,
}  # fmt: skip
#: what must not differ inside one table, with the mark of a cell that does and what it means
MARKS = {
    "!": "some samples failed; the score is over the answered ones",
    "a": "computed with other package versions than most of this table",
    "b": "computed on another device, dtype, kernel or number of threads than most of this table",
    "c": "data of this benchmark differ between rows (content or revision)",
    "d": "the code of its method, or of models/, was another than for most of this table",
    "e": "metric differs from the one of conf/bench",
    "p": "under another model.preset or processor option than most of this table",
    gate.MARK: "baseline not confirmed",
}


@dataclass
class Found:
    """What the store holds for one wanted cell."""

    wanted: Wanted
    status: str
    result: Mapping[str, Any] | None = None
    answered: int = 0
    reason: str = ""
    marks: list[str] = field(default_factory=list)
    unpruned: Mapping[str, Any] | None = None  # the unpruned run under the same conditions

    @property
    def done(self) -> bool:
        return self.status == DONE

    @property
    def folder(self) -> Path | None:
        return Path(self.result["directory"]) if self.result else None




class Index:
    """All cells below ``results/runs`` by what they were asked."""

    def __init__(self, results: Path, budgets: bool = False) -> None:
        self._by_asked: dict[str, list[index.Stored]] = {}
        for stored in index.cells(results):
            made = _asked_of(stored.identity)
            if budgets and (budget := cell_budget(index.config(stored.folder))):
                moved = moved_from(index.config(stored.folder))
                made["method"] = {**made["method"], **moved, "ratio": budget}
            self._by_asked.setdefault(canonical_json(made), []).append(stored)

    def find(self, cell: Wanted) -> list[index.Stored]:
        """Stored cells with this request, checkpoint name and data source."""
        model, data = cell.config["model"], cell.config["data"]
        found = self._by_asked.get(canonical_json(cell.asked), [])
        return [s for s in found if _same_model(s, model) and _same_data(s, data)]




def _asked_of(identity: Mapping[str, Any]) -> dict[str, Any]:
    """All of an identity but where and with what it was answered."""
    return {k: v for k, v in identity.items() if k not in ("format", "model", "data", "versions")}


def _same_model(stored: index.Stored, model: Mapping[str, Any]) -> bool:
    if stored.folder.parent.name != model["name"]:
        return False
    here = fingerprint(model)
    return here is None or stored.identity["model"]["checkpoint"] == here


@cache
def _fingerprint(path: Path) -> str | None:
    return checkpoint.fingerprint(path) if (path / "config.json").is_file() else None


def fingerprint(model: Mapping[str, Any]) -> str | None:
    """Fingerprint of a checkpoint that lies on this machine, None if there is none."""
    path = model.get("path")
    if not path:
        return None
    return _fingerprint(repo_path(str(path)))


def repo_path(text: str) -> Path:
    """A path of conf/, with ``${repo:...}`` resolved."""
    if text.startswith("${repo:"):
        return CONF.parent / text.removeprefix("${repo:").removesuffix("}")
    return Path(text).expanduser()


def _same_data(cell: index.Stored, data: Mapping[str, Any]) -> bool:
    stored = cell.identity["data"]
    if stored["source"] != data["source"]:
        return False
    if data["source"] != "mini":
        revision = data.get("revision")
        return revision is None or stored.get("revision") in (None, revision)
    return stored["seed"] == (data.get("seed") or 0) and _drawn(cell.folder) == data.get("samples")


def _drawn(folder: Path) -> int | None:
    """``data.samples`` of a cell; its identity counts the rows of all tables together."""
    return index.config(folder).get("data", {}).get("samples")




def find(table: Table, results: Path) -> list[Found]:
    """Every cell of the table with its status and marks."""
    cells = table.cells()
    cells_there = Index(results, any(isinstance(_ratio(cell), dict) for cell in cells))
    sweeps = Sweeps(results)
    stored = [cells_there.find(cell) for cell in cells]
    if table.scorer is not None:
        stored = _scored_with(table.scorer, stored)
    found = [_status(cell, there, sweeps) for cell, there in zip(cells, stored, strict=True)]
    _mark(found)
    return found


def _scored_with(scorer: str, stored: Sequence[list[index.Stored]]) -> list[list[index.Stored]]:
    """Only the cells whose engine had this version when it scored them.

    Raises:
        ConfigError: none had; names those there are.
    """
    versions = {
        id(one): one.identity["versions"][engine_package(one.identity["versions"])]
        for there in stored for one in there if one.result is not None
    }  # fmt: skip
    if scorer not in versions.values():
        known = ", ".join(sorted(set(versions.values()))) or "no cell is finished"
        raise ConfigError(f"scorer={scorer}: no cell of this table was scored with it ({known})")
    return [[one for one in there if versions.get(id(one), scorer) == scorer] for there in stored]


def by_place(found: Iterable[Found]) -> dict[tuple[str, str], list[Found]]:
    """The runs of each row and benchmark, in the order of the table."""
    places: dict[tuple[str, str], list[Found]] = {}
    for cell in found:
        places.setdefault((cell.wanted.row.key, cell.wanted.bench), []).append(cell)
    return places


def _ratio(cell: Wanted) -> Any:
    return cell.asked["method"].get("ratio")


def _status(cell: Wanted, stored: Sequence[index.Stored], sweeps: Sweeps) -> Found:
    reason = never(cell.config, _ratio(cell), cell.row.ratio)
    if reason:
        return Found(cell, IMPOSSIBLE, reason=reason)
    finished = [s.result for s in stored if s.result is not None]
    if finished:
        newest = max(finished, key=lambda r: (r["n_samples"], r["finished"], r["key"]))
        return Found(cell, DONE, newest, newest["n_samples"] - newest["n_failed"])
    state = sweeps.unfinished(cell.config, [s.folder for s in stored])
    if state is None:
        return Found(cell, MISSING)
    log = f" (log: {state.log})" if state.log and state.name != status.RUNNING else ""
    reason = f"on {state.where}" if state.name == status.RUNNING else f"{state.reason}{log}"
    return Found(cell, _STATUS[state.name], answered=state.answered, reason=reason)


def never(config: Mapping[str, Any], asked: Any, ratio: float) -> str:
    """Why no run of a config can be made, or "". Known from the method's depth K and the model's.

    Args:
        asked: the ratio as the request has it; a mapping is a budget.
        ratio: of the row.
    """
    method, layers = config["method"], _layers(config["model"])
    depth = method.get("K")
    if method.get("nominal") is not None:
        return ""  # the ratio is only its label
    if not ratio or depth is None or layers is None or isinstance(asked, dict):
        return ""  # a budget that cannot be met is refused by the run itself
    if depth >= layers:
        return f"K={depth} must be below the {layers} layers of the model"
    if method.get("ratio_mode") == "mean" and ratio > 1 - depth / layers + 1e-12:
        return (
            f"a mean removal of {ratio:g} is impossible with K={depth} of {layers} layers "
            f"(at most {1 - depth / layers:.3f})"
        )
    return ""


def _layers(model: Mapping[str, Any]) -> int | None:
    for key in ("architecture", "path"):
        if not model.get(key):
            continue
        with contextlib.suppress(ModelLoadError):
            content = describe(repo_path(str(model[key]))).config
            return content.get("text_config", content).get("num_hidden_layers")
    return None


def _mark(found: Sequence[Found]) -> None:
    """Mark the cells that do not go together with the rest of the table."""
    done = [cell for cell in found if cell.result]
    versions = odd(done, lambda r: r["identity"]["versions"])
    runtime = odd(done, lambda r: {**r["identity"]["model"], "checkpoint": None})
    code, settings = odd_code(done), odd(done, gate.preset)
    data: set[int] = set()
    for bench in {cell.wanted.bench for cell in done}:
        own = [cell for cell in done if cell.wanted.bench == bench]
        data |= odd(own, lambda r: [r["identity"]["data"], r["identity"]["model"]["checkpoint"]])
        settings |= odd(own, gate.settings)  # a preset may ask one benchmark otherwise
    for cell in done:
        result = cell.result or {}
        for mark, cells in (("a", versions), ("b", runtime), ("c", data), ("d", code)):
            if id(cell) in cells:
                cell.marks.append(mark)
        if result["n_failed"]:
            cell.marks.insert(0, "!")
        if result["metric"] != _metric(cell.wanted.config):
            cell.marks.append("e")
        if id(cell) in settings:
            cell.marks.append("p")
        cell.unpruned = gate.baseline(result)
        if gate.mark(gate.status_of(cell.unpruned)):
            cell.marks.append(gate.MARK)


def odd(cells: Sequence[Any], of: Any) -> set[int]:
    """ids of the cells whose property is not that of the most; ties go to the newest."""
    texts = {id(cell): canonical_json(of(cell.result)) for cell in cells}
    counts = Counter(texts.values())
    newest = {texts[id(cell)]: cell.result["finished"] for cell in cells if cell.result}
    usual = max(counts, key=lambda text: (counts[text], newest[text]), default=None)
    return {cell for cell, text in texts.items() if text != usual}


def odd_code(cells: Sequence[Any]) -> set[int]:
    """ids of the cells that other code computed than most: of their own method, or of models/."""
    found = odd(cells, lambda r: r["provenance"].get("runtime"))
    for method in {cell.result["method"] for cell in cells}:
        own = [cell for cell in cells if cell.result["method"] == method]
        found |= odd(own, lambda r: r["provenance"]["code"])
    return found


def _metric(config: Mapping[str, Any]) -> str:
    from vtprune.harness.request import benches

    return benches.for_engine(dict(config["bench"]), dict(config["engine"]))["metric"]


def seconds(found: Iterable[Found]) -> dict[str, float]:
    """Measured seconds per sample of each benchmark; "" holds the mean over all."""
    per: dict[str, list[float]] = {}
    for cell in found:
        if cell.result and (n := cell.result["n_samples"] - cell.result.get("resumed_after", 0)):
            rate = cell.result["wall_s"] / n
            per.setdefault(cell.wanted.bench, []).append(rate)
            per.setdefault("", []).append(rate)
    return {bench: sum(rates) / len(rates) for bench, rates in per.items()}
