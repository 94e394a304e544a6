"""Serve local parquet files, or a subset of rows, to an engine that asks `datasets` for hub ids.

lmms-eval calls ``datasets.load_dataset("<org>/<name>")``. For the duration of one call that
function is replaced, and restored whatever happens; the engine's own task files stay untouched.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vtprune.harness.request.errors import HarnessError

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


def _check_revision(loaded: Any, dataset: str, revision: str) -> None:
    """Offline, the library ignores the revision and takes the copy prepared last."""
    for split in loaded.values() if isinstance(loaded, dict) else [loaded]:
        for file in split.cache_files:
            commit = Path(file["filename"]).parent.name
            if re.fullmatch("[0-9a-f]{40}", commit) and commit != revision:
                raise HarnessError(
                    f"data set {dataset}: commit {revision[:8]} was asked, but the newest copy in "
                    f"the cache is {commit[:8]}; run where there is a network, or use data.root=DIR"
                )


@contextlib.contextmanager
def redirect(
    root: Path | None,
    *,
    subset: tuple[str, str | None, str, Sequence[int]] | None = None,
    revision: tuple[str, str] | None = None,
    cache_dir: Path | None = None,
) -> Iterator[None]:
    """Redirect ``datasets.load_dataset`` inside the block.

    Args:
        root: folder of local data sets; None leaves the hub (or its cache) in place.
        subset: (data set, config, split, rows): only these rows of that split, in this order.
            Everything an engine computes, aggregation included, then sees these samples and no
            others. Other configs of the same data set (GQA's images) stay whole.
        revision: (data set, commit) to pin on the hub.
        cache_dir: where the prepared arrow files go, away from the user's own cache.
    """
    import datasets

    real, counted = datasets.load_dataset, datasets.config.HF_UPDATE_DOWNLOAD_COUNTS

    def load(path: str, name: str | None = None, *args: Any, split: Any = None, **kw: Any) -> Any:
        if cache_dir is not None:
            kw["cache_dir"] = str(cache_dir)
        if root is None:
            if revision is not None and path == revision[0]:
                kw["revision"] = revision[1]
            loaded = real(path, name, *args, split=split, **kw)
            if revision is not None and path == revision[0]:
                _check_revision(loaded, *revision)
        else:
            # The parquet builder keys its cache by path and time of the files. Loading the folder
            # by its README instead would silently serve rows of an earlier folder of that name.
            files = parquet_files(root, path, name)
            kw = {k: v for k, v in kw.items() if k not in _HUB_ONLY}
            loaded = real("parquet", data_files=files, split=split, **kw)
        if subset is not None and split is None and (path, name) == subset[:2]:
            loaded[subset[2]] = loaded[subset[2]].select(list(subset[3]))
        return loaded

    datasets.load_dataset = load
    if root is not None:
        # Every load is announced to a download counter, and without a network waits for it.
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        datasets.load_dataset = real
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counted
