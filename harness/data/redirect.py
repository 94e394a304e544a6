"""Serve local parquet files, or a subset of rows, to an engine that asks `datasets` for hub ids.

lmms-eval calls ``datasets.load_dataset("<org>/<name>")``. For the duration of one call that
function is replaced, and restored whatever happens; the engine's own task files stay untouched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.errors import HarnessError

_HUB_ONLY = ("token", "revision", "trust_remote_code", "data_files", "data_dir")


def parquet_files(root: Path, dataset: str, name: str | None) -> dict[str, list[str]]:
    """Files by split in ``root/<org>/<dataset>/<config, or "data">/<split>-*.parquet``."""
    folder = root / dataset / (name if name and name != "default" else "data")
    files: dict[str, list[str]] = {}
    for file in sorted(folder.glob("*.parquet")):
        files.setdefault(file.name.split("-")[0], []).append(str(file))
    if not files:
        raise HarnessError(f"no parquet files for data set {dataset} in {folder}")
    return files


@contextlib.contextmanager
def redirect(
    root: Path | None,
    *,
    subset: tuple[str, str, Sequence[int]] | None = None,
    revision: tuple[str, str] | None = None,
    cache_dir: Path | None = None,
) -> Iterator[None]:
    """Redirect ``datasets.load_dataset`` inside the block.

    Args:
        root: folder of local data sets; None leaves the hub (or its cache) in place.
        subset: (data set, split, rows): only these rows of that split, in this order. Everything
            an engine computes, aggregation included, then sees these samples and no others.
        revision: (data set, commit) to pin on the hub.
        cache_dir: where the prepared arrow files go, away from the user's own cache.
    """
    import datasets

    real = datasets.load_dataset

    def load(path: str, name: str | None = None, *args: Any, split: Any = None, **kw: Any) -> Any:
        if cache_dir is not None:
            kw["cache_dir"] = str(cache_dir)
        if root is None:
            if revision is not None and path == revision[0]:
                kw["revision"] = revision[1]
            loaded = real(path, name, *args, split=split, **kw)
        else:
            # The parquet builder keys its cache by path and time of the files. Loading the folder
            # by its README instead would silently serve rows of an earlier folder of that name.
            files = parquet_files(root, path, name)
            kw = {k: v for k, v in kw.items() if k not in _HUB_ONLY}
            loaded = real("parquet", data_files=files, split=split, **kw)
        if subset is not None and path == subset[0] and subset[1] in loaded:
            loaded[subset[1]] = loaded[subset[1]].select(list(subset[2]))
        return loaded

    datasets.load_dataset = load
    try:
        yield
    finally:
        datasets.load_dataset = real
