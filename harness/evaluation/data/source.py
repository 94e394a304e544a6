"""Which data a cell reads: drawn mini data or the hub's. Never one in place of the other."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vtprune.harness.evaluation.data import truncated
from vtprune.harness.request import hub
from vtprune.harness.request.errors import ConfigError, unknown
from vtprune.harness.request.request import Bench, Data, Task

SOURCES = ("mini", "hub")
_HERE = Path(__file__).parent
_NOTE = "content.json"


@dataclass(frozen=True)
class DataSource:
    """Where the rows come from. ``root`` is None when the engine itself asks the hub."""

    source: str
    root: Path | None
    revision: str | None
    cache: Path | None
    identity: dict[str, Any]
    note: str | None = None


def check(data: Data) -> None:
    """Refuse an impossible ``data`` entry early."""
    if data.source not in SOURCES:
        raise ConfigError("data.source: " + unknown("data source", str(data.source), SOURCES))
    if data.truncated_images not in truncated.CHOICES:
        asked = str(data.truncated_images)
        raise ConfigError(unknown("data.truncated_images", asked, truncated.CHOICES))
    root = data.root
    if root and not Path(str(root)).expanduser().is_dir():
        raise ConfigError(f"data.root: no such directory: {root}")


def prepare(data: Data, bench: Bench, engine: Task, cache: Path) -> DataSource:
    """Build (mini) or locate (hub) the data of one benchmark, with what identifies its rows."""
    found = _found(data, bench, engine, cache)
    if data.truncated_images == truncated.REFUSE:
        return found
    kept = {**found.identity, "truncated_images": data.truncated_images}
    return replace(found, identity=kept)


def _found(data: Data, bench: Bench, engine: Task, cache: Path) -> DataSource:
    if data.source == "mini":
        return _mini(data, bench.mini or bench.name, engine.table, cache)
    if engine.table:
        return _published_table(data, engine.table)
    if engine.local:
        identity = {"source": "hub", "content": engine.local}
        return DataSource("hub", None, None, cache / "datasets", identity)
    if data.root:
        root = Path(str(data.root)).expanduser().resolve()
        if (root / _NOTE).exists() or list((root / engine.dataset).glob(".*.json")):
            raise ConfigError(f"data.root: {root} holds drawn mini data; use data=mini")
        identity = {"source": "hub", "content": _listing(root / engine.dataset)}
        return DataSource("hub", root, None, cache / "datasets", identity)
    commit, note = hub.dataset_commit(engine.dataset, data.revision, hub.configs(engine))
    identity = {"source": "hub", "dataset": engine.dataset, "revision": commit}
    return DataSource("hub", None, commit, None, identity, note)


def _listing(folder: Path) -> str:
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise ConfigError(f"data.root: no parquet files in {folder}")
    rows = [(str(f.relative_to(folder)), f.stat().st_size) for f in files]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _published_table(data: Data, table: str) -> DataSource:
    from vtprune.harness.evaluation.data import tables

    file = tables.downloaded(data.root, table)
    if (file.parent / _NOTE).exists():
        raise ConfigError(f"data.root: {file.parent} holds drawn mini data; use data=mini")
    identity = {"source": "hub", "table": table, "md5": tables.md5(file)}
    return DataSource("hub", file.parent, None, None, identity)


def _mini(data: Data, bench: str, table: str | None, cache: Path) -> DataSource:
    from vtprune.harness.evaluation.data import mini, tables

    if bench not in mini.BENCHES:
        raise ConfigError(
            f"data=mini has no stand-in for bench={bench} (it has: {', '.join(mini.BENCHES)}); "
            "use data=hub"
        )
    seed, samples = int(data.seed or 0), data.samples
    stamp = _stamp(seed, samples)
    root = cache / "mini" / f"{table or bench}-{stamp}"
    note = root / _NOTE
    if not note.is_file():
        build = root.with_name(f".{root.name}-{uuid.uuid4().hex[:8]}")
        if table:
            made = tables.content(tables.build(bench, table, build, seed, samples))
        else:
            with _without_bars():
                mini.build(bench, build, seed=seed, n=samples)
            made = content(build)
        (build / _NOTE).write_text(json.dumps(made), encoding="utf-8")
        _publish(build, root)
    identity = {"source": "mini", "seed": seed, **json.loads(note.read_text(encoding="utf-8"))}
    return DataSource("mini", root, None, cache / "datasets", identity)


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    import datasets

    hidden = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            datasets.enable_progress_bars()


def _publish(build: Path, root: Path) -> None:
    try:
        os.rename(build, root)
    except OSError:  # another process made the same data first
        shutil.rmtree(build)


def _stamp(seed: int, samples: int | None) -> str:
    """Hash of the generator itself, so that a changed generator never serves old rows."""
    files = [*sorted((_HERE / "mini").rglob("*.py")), *sorted((_HERE / "mini").glob("*.npz"))]
    digest = hashlib.sha256(json.dumps([seed, samples]).encode())
    for file in [*files, _HERE / "tables.py"]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:10]


def content(root: Path) -> dict[str, Any]:
    """Row count and a hash of the values in all parquet files below ``root``.

    Values, not bytes of the files, so that another version of the parquet writer does not make
    the same questions look like different ones.
    """
    import pyarrow.parquet

    digest, rows = hashlib.sha256(), 0
    for file in sorted(root.rglob("*.parquet")):
        table = pyarrow.parquet.read_table(file)
        rows += table.num_rows
        digest.update(file.relative_to(root).as_posix().encode())
        for row in table.to_pylist():
            digest.update(json.dumps(row, sort_keys=True, default=_digestible).encode())
    return {"rows": rows, "content": digest.hexdigest()[:16]}


def _digestible(value: Any) -> str:
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    return str(value)
