"""The images and records behind stored samples: everything is read, nothing is run."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import PIL.Image

from vtprune.harness.evaluation.data import source
from vtprune.harness.evaluation.data.images import as_rgb
from vtprune.harness.evaluation.data.redirect import parquet_files
from vtprune.harness.request.errors import HarnessError
from vtprune.harness.request.request import Request, Task
from vtprune.harness.store import index


def images(folder: Path, docs: Iterable[int], results: Path) -> dict[int, PIL.Image.Image]:
    """First image of each row of a cell's benchmark.

    Raises:
        HarnessError: the data are not on this machine.
    """
    config = index.config(folder)
    if not config:
        raise HarnessError(f"{folder} does not say what was asked: it has no cell.yaml")
    try:
        asked = Request(config)
        engine, data, bench = asked.entry, asked.data, asked.bench
    except KeyError as error:
        raise HarnessError(f"{folder}/cell.yaml does not say what was asked: no {error}") from error
    if not engine.dataset or engine.table:
        raise HarnessError("images are read for engine=lmms_eval only")
    if data.source == "mini":
        cache = (Path(results) / ".cache").resolve()
        found = source.prepare(data, bench, engine, cache)
        return _from_parquet(found.root or cache, engine, docs)
    if data.root:
        return _from_parquet(Path(data.root), engine, docs)
    return _from_hub(engine, docs)


def _from_parquet(root: Path, engine: Task, docs: Iterable[int]) -> dict[int, PIL.Image.Image]:
    table = _table(root, engine.dataset, engine.config, engine.split)
    join = engine.images
    if join is None:
        return {doc: picture(_first_image(table.slice(doc, 1).to_pylist()[0])) for doc in docs}
    other = _table(root, engine.dataset, join.config, join.split)
    place = {name: row for row, name in enumerate(other.column("id").to_pylist())}
    keys = table.column(join.key).to_pylist()
    rows = {doc: other.slice(place[keys[doc]], 1).to_pylist()[0] for doc in docs}
    return {doc: picture(_first_image(row)) for doc, row in rows.items()}


@lru_cache(maxsize=16)
def _table(root: Path, dataset: str, name: str | None, split: str) -> Any:
    import pyarrow
    import pyarrow.parquet

    files = parquet_files(root, dataset, name)[split]
    return pyarrow.concat_tables([pyarrow.parquet.read_table(file) for file in files])


def _from_hub(engine: Task, docs: Iterable[int]) -> dict[int, PIL.Image.Image]:
    import datasets

    split = datasets.load_dataset(engine.dataset, engine.config, split=engine.split)
    if join := engine.images:
        other = datasets.load_dataset(engine.dataset, join.config, split=join.split)
        place = {name: row for row, name in enumerate(other["id"])}
        return {d: as_rgb(other[place[split[d][join.key]]]["image"]) for d in docs}
    return {doc: picture(_first_image(split[doc])) for doc in docs}


def _first_image(row: Mapping[str, Any]) -> Any:
    for value in row.values():
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(first, PIL.Image.Image):
            return first
        if isinstance(first, dict) and isinstance(first.get("bytes"), bytes):
            return first
    raise HarnessError("this row has no image")


def picture(value: Any) -> PIL.Image.Image:
    """An image column's value as an RGB picture."""
    if isinstance(value, PIL.Image.Image):
        return as_rgb(value)
    return as_rgb(PIL.Image.open(io.BytesIO(value["bytes"])))
