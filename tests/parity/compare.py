"""Run all comparisons, and count what is equal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.parity import checkpoints, pictures, product
from tests.parity.comparisons import ALL, ASPECTS, INPUT, Comparison

ROOT = Path(__file__).resolve().parents[2]
STOCK = {"lmms_eval": "stock_lmms", "vlmevalkit": "stock_vlm"}


@dataclass(frozen=True)
class Counted:
    """Rows compared, and of how many each aspect is equal.

    ``broken`` are the rows that no difference of input explains: the model was asked the same and
    said something else, or said the same and was heard otherwise.
    """

    comparison: Comparison
    rows: int
    equal: dict[str, int]
    scores: bool
    details: tuple[str, ...]
    broken: tuple[str, ...]


class Suite:
    """Everything below one folder: checkpoints, data, logs of both sides."""

    def __init__(self, folder: Path, chosen: Sequence[Comparison] = ALL) -> None:
        self.folder, self.chosen = folder, chosen
        self.paths = {name: checkpoints.build(name, folder / "checkpoints" / name)
                      for name in checkpoints.BUILDERS
                      if any(one.checkpoint == name for one in chosen)}  # fmt: skip
        for name, place in (("embedded", "llava"), ("embedded_llava_next", "llava-next")):
            self.paths[name] = ROOT / "models" / "embedded" / place
        self.pictures = folder / "pictures"
        pictures.parquet(self.pictures)
        pictures.table(self.pictures)

    def run(self, engine: str) -> None:
        """The stock process of one engine, and the cells of the same rows."""
        chosen = [one for one in self.chosen if one.engine == engine]
        parts = [self._part(one) for one in chosen]
        out = self.folder / "stock"
        out.mkdir(exist_ok=True)
        spec = self.folder / f"{engine}.json"
        spec.write_text(json.dumps({"out": str(out), "parts": parts}), encoding="utf-8")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1",
                       "HF_HOME": str(self.folder / "hf"), "OMP_NUM_THREADS": "1"}  # fmt: skip
        command = [sys.executable, "-m", f"tests.parity.{STOCK[engine]}", str(spec)]
        stock = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, encoding="utf-8",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            for one in chosen:
                product.run(one.name, self.folder / "cells", self._overrides(one))
        finally:
            told, _ = stock.communicate()
        assert stock.returncode == 0, told[-6000:]

    def _part(self, one: Comparison) -> dict[str, Any]:
        bench = yaml.safe_load((ROOT / "conf/bench" / f"{one.bench}.yaml").read_text("utf-8"))
        entry = bench["engines"][one.engine]
        return {
            "name": one.name, "client": one.client, "checkpoint": str(self.paths[one.checkpoint]),
            "root": str(self._root(one)), "task": entry["task"], "folder": entry.get("folder"),
            "table": entry.get("table"), "options": dict(one.options), "limit": one.limit,
        }  # fmt: skip

    def _root(self, one: Comparison) -> Path:
        if one.pictures:
            return self.pictures
        results = self.folder / "cells" / one.name / "results"
        return product.mini_root(results, one.bench, one.engine, one.rows)

    def _overrides(self, one: Comparison) -> list[str]:
        model = checkpoints.CONFIG.get(one.checkpoint, one.checkpoint)
        found = [f"model={model}", f"bench={one.bench}", f"engine={one.engine}"]
        if one.checkpoint in checkpoints.CONFIG:
            found += [f"model.path={self.paths[one.checkpoint]}", "model.dtype=float32",
                      "model.device=cpu"]  # fmt: skip
        if one.pictures:
            found += ["data=hub", f"data.root={self.pictures}"]
            found += [f"bench.limit={one.rows}"]
        else:
            found += [f"data.samples={one.rows}"]
        return [*found, *one.overrides]

    def count(self, one: Comparison) -> Counted:
        """Compare what both sides left behind."""
        stock = _read(self.folder / "stock" / one.name)
        cells = _read(self.folder / "cells" / one.name)
        assert stock["rows"].keys() == cells["rows"].keys(), "other rows were asked"
        equal, details, broken = dict.fromkeys(ASPECTS, 0), [], []
        for row, theirs in stock["rows"].items():
            ours = cells["rows"][row]
            theirs["tokens"], ours["tokens"] = theirs["new"], ours["new"]
            theirs["answers"] = stock["answers"][row].strip()
            if one.special:
                theirs["answers"] = re.sub(r"<[^<>\s]+>", "", theirs["answers"]).strip()
            ours["answers"] = cells["answers"][row]
            for aspect in ASPECTS:
                equal[aspect] += theirs[aspect] == ours[aspect]
                if theirs[aspect] != ours[aspect]:
                    details.append(f"row {row} {aspect}: {_short(theirs[aspect], ours[aspect])}")
            same = {aspect: theirs[aspect] == ours[aspect] for aspect in ASPECTS}
            if all(same[aspect] for aspect in INPUT) and not same["tokens"]:
                broken.append(f"row {row}: the same input, other tokens")
            if same["tokens"] and not same["answers"]:
                broken.append(f"row {row}: the same tokens, another answer")
        unequal = {k: (v, cells["metrics"].get(k)) for k, v in stock["metrics"].items()
                   if abs(v - cells["metrics"].get(k, float("nan"))) > 1e-9
                   or k not in cells["metrics"]}  # fmt: skip
        if unequal:
            details.append(f"scores: {unequal}")
            if equal["answers"] == len(stock["rows"]):
                broken.append("the same answers, other scores")
        return Counted(one, len(stock["rows"]), equal, not unequal, tuple(details),
                       tuple(broken))  # fmt: skip


def _short(theirs: Any, ours: Any) -> str:
    if isinstance(theirs, dict):
        return str({k: (v, ours.get(k)) for k, v in theirs.items() if v != ours.get(k)})
    if isinstance(theirs, list):
        same = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b),
                    min(len(theirs), len(ours)))  # fmt: skip
        return (f"lengths {len(theirs)}, {len(ours)}; from {same}: {theirs[same : same + 8]} "
                f"against {ours[same : same + 8]}")  # fmt: skip
    return f"{theirs!r} against {ours!r}"


def _read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "rows.json").read_text(encoding="utf-8"))


def table(counted: Sequence[Counted]) -> str:
    """The counts as text, one comparison a line."""
    head = ["engine", "client", "checkpoint", "bench", "rows", *ASPECTS, "scores"]
    lines = [head]
    for one in counted:
        it = one.comparison
        lines.append([it.engine, it.client, it.checkpoint, it.bench, str(one.rows),
                      *(str(one.equal[aspect]) for aspect in ASPECTS),
                      "equal" if one.scores else "differ"])  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
