"""Figures from stored records: `python scripts/figures.py table=NAME [bench=...] [doc=...]`.

    python scripts/figures.py table=mini_table1              curves, Pareto front, kept tokens
    python scripts/figures.py table=fig4 kind=ratios         one kind only
    python scripts/figures.py probe model=embedded bench=textvqa docs=[0,1,2]
                                                             one pass of the model for Figs. 1b, 5

Kinds: cost (Fig. 3), ratios (Fig. 4), pareto, kept (Fig. 6), flow (Fig. 5), norms (Fig. 1b).
Options: model= data= as in the table, results=DIR, out=DIR.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from vtprune import places
from vtprune.harness.reporting.tables import analysis, asked
from vtprune.harness.request.arguments import wants_help
from vtprune.harness.request.errors import ConfigError, HarnessError, unknown
from vtprune.harness.store import index

KINDS = ("cost", "ratios", "pareto", "kept", "flow", "norms")
FROM_TABLE = ("cost", "ratios", "pareto", "kept")
OWN = (*asked.WORDS, "results", "out", "kind", "doc", "docs", "bench")


def main(arguments: Sequence[str]) -> int:
    """The command with errors in one line."""
    if wants_help(list(arguments), __doc__):
        return 0
    try:
        for file in run(arguments):
            print(file)
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def run(arguments: Sequence[str]) -> list[Path]:
    """Draw what was asked; returns the files."""
    words = [a for a in arguments if "=" not in a]
    pairs = {k: yaml.safe_load(v) for k, v in (a.split("=", 1) for a in arguments if "=" in a)}
    results = Path(pairs.get("results", places.RESULTS))
    if words == ["probe"]:
        return probe(pairs, results)
    if words or not ("table" in pairs or "kind" in pairs):
        raise ConfigError("give table=NAME, kind=flow or kind=norms, or: probe")
    kinds = [pairs["kind"]] if "kind" in pairs else list(FROM_TABLE)
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(unknown("kind", kind, KINDS))
    out, files = Path(pairs.get("out", results / "figures")), []
    if set(kinds) & set(FROM_TABLE):
        if "table" not in pairs:
            raise ConfigError(f"kind={kinds[0]} is drawn from a table: give table=NAME")
        files += from_table(pairs, kinds, results, out)
    if set(kinds) - set(FROM_TABLE):
        files += from_probes(kinds[0], results, out)
    return files


def from_table(
    pairs: dict[str, Any], kinds: Sequence[str], results: Path, out: Path
) -> list[Path]:  # fmt: skip
    """Curves, front and kept tokens of a table's finished cells."""
    from vtprune.harness.reporting.figures import curves, overlay, paper

    changes = {k: v for k, v in pairs.items() if k not in OWN}
    table = asked.load(pairs, changes)
    grid = analysis.build(table, results)
    drawn = {"cost": curves.cost_performance, "ratios": curves.over_ratios,
             "pareto": curves.pareto}  # fmt: skip
    files = []
    for kind in kinds:
        if kind in drawn:
            files += paper.save(drawn[kind](grid), out / f"{table.name}-{kind}")
    if "kept" in kinds:
        bench = pairs.get("bench") or _drawable(grid)
        for doc in pairs.get("docs") or [pairs.get("doc", 0)]:
            made = overlay.kept_tokens(grid, bench, doc, results)
            files += paper.save(made, out / f"{table.name}-kept-{bench}-{doc}")
    return files


def _drawable(grid: analysis.Grid) -> str:
    there = [b for b in reversed(grid.table.benches)
             if any(grid.at(r, b).value is not None for r in grid.table.rows)]  # fmt: skip
    if not there:
        raise ConfigError(f"table {grid.table.name} has no finished cell to draw")
    return there[0]


def from_probes(kind: str, results: Path, out: Path) -> list[Path]:
    """Figures 5 and 1b from what ``probe`` stored."""
    from vtprune.harness.reporting.figures import flow, paper

    files = []
    stored = sorted((results / "probes").glob("*/*.npz"))
    if not stored:
        raise ConfigError("no probes stored; run: python scripts/figures.py probe model=... bench=")
    for folder in sorted({file.parent for file in stored}):
        own = [file for file in stored if file.parent == folder]
        if kind == "norms":
            files += paper.save(flow.norms(own), out / f"{folder.name}-norms")
            continue
        for file in own:
            files += paper.save(flow.heat_maps(file), out / f"{folder.name}-flow-{file.stem}")
    return files


def probe(pairs: dict[str, Any], results: Path) -> list[Path]:
    """One pass of the model over some images of a finished unpruned cell."""
    from vtprune.harness.reporting.figures import probe as probing
    from vtprune.harness.reporting.figures import rows
    from vtprune.harness.reporting.tables import gate, lookup
    from vtprune.harness.request import compose as wanted
    from vtprune.harness.request.device import resolve
    from vtprune.harness.request.request import Model
    from vtprune.models.load import load

    bench, docs = pairs.get("bench", "textvqa"), pairs.get("docs") or [pairs.get("doc", 0)]
    model = wanted.compose({"model": pairs.get("model", "embedded")})["model"]
    name = model["name"]
    cells = [one for one in index.finished(results, bench, name) if gate.is_baseline(one)]
    if not cells:
        raise ConfigError(f"no finished unpruned cell of {name} on {bench}: run it first")
    folder = Path(max(cells, key=lambda one: one["finished"])["directory"])
    path = lookup.repo_path(str(model["path"])) if model.get("path") else None
    if path is None:
        raise ConfigError("probe needs a local checkpoint: model.path in conf/local, or embedded")
    described = yaml.safe_load((path / "config.json").read_text(encoding="utf-8"))
    runtime = resolve(Model.of(model), described)
    vlm = load({"path": path, "name": name, **runtime.entries()})
    entries, images = index.entries(folder), rows.images(folder, docs, results)
    return [
        probing.run(vlm, entries[doc]["prompt"], images[doc],
                    results / "probes" / name / f"{bench}-{doc}.npz", options=None)
        for doc in docs
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
