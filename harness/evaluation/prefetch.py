"""Fetch everything a cell needs, for machines that cannot do it themselves while they compute."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vtprune import places
from vtprune.harness.evaluation.data import tables
from vtprune.harness.request import benches, engine_tasks, hub
from vtprune.harness.request import clip as text_tower
from vtprune.harness.request.errors import HarnessError, one_line
from vtprune.harness.request.request import Data, Model, Request, Task


@dataclass(frozen=True)
class Fetched:
    """One thing that is on this machine now."""

    what: str
    name: str
    commit: str | None
    folder: Path

    @property
    def size(self) -> int:
        """Bytes of its files; links count as what they point at, once."""
        if self.folder.is_file():
            return self.folder.stat().st_size
        files = {file.resolve() for file in self.folder.rglob("*") if file.is_file()}
        return sum(file.stat().st_size for file in files)

    def line(self) -> str:
        commit = f" @ {self.commit[:8]}" if self.commit else ""
        return f"{self.what:9} {human(self.size):>9}  {self.name}{commit}  {self.folder}"


def human(size: float) -> str:
    """1536 -> 1.5 KB."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def command(request: Request) -> str:
    """The command line that fetches what this request needs."""
    chosen, data = request.choices, request.data
    parts = [f"model={chosen.get('model') or request.model.name}"]
    bench = chosen.get("bench") or request.bench.name
    if bench == engine_tasks.NAMED:
        bench = f"{request.engine}:{request.entry.task}"
    parts.append(f"bench={bench}")
    if text_tower.wanted(request.method):
        parts.append(f"method={request.method.name} ratio=0.9")
    if request.engine != "lmms_eval":
        parts.append(f"engine={request.engine}")
    if data.root:
        parts.append(f"data.root={data.root}")
    if data.revision:
        parts.append(f"data.revision={data.revision}")
    return " ".join([places.command("prefetch"), *parts])


@contextlib.contextmanager
def named(request: Request) -> Iterator[None]:
    """Let what is missing inside the block be an error that names the command to fetch it."""
    try:
        yield
    except hub.NotFetched as error:
        raise error.with_command(command(request)) from error


def fetch(asked: Request) -> Iterator[Fetched]:
    """Fetch the model and the data of a request, one thing after the other.

    Raises:
        HarnessError: something could not be fetched; one line with the reason.
    """
    if hub.offline():
        raise HarnessError("offline mode is on: unset HF_HUB_OFFLINE and the like to fetch")
    request = benches.seen_by_engine(asked)
    yield from _model(request.model)
    clip = text_tower.find(request)
    if clip and "@" in clip.fingerprint:  # not a folder of this machine
        repo, _, commit = clip.fingerprint.partition("@")
        yield Fetched("CLIP", repo, commit, clip.path)
    engine, data = request.entry, request.data
    if data.source != "hub":
        return
    if engine.table:
        yield _table(engine.table, data.root)
    else:
        yield from _dataset(engine, data)


def _model(model: Model) -> Iterator[Fetched]:
    if model.path or not model.hub:
        return  # already a folder of this machine
    _, commit = hub.model_config(model.hub, model.revision)
    folder = hub.download_model(model.hub, commit or model.revision)
    yield Fetched("model", model.hub, commit or folder.name, folder)


def _dataset(engine: Task, data: Data) -> Iterator[Fetched]:
    """The hub's files into ``data.root``, or else prepared in the library's cache.

    Only prepared data sets can be opened without a network; downloaded files alone cannot.
    """
    import datasets
    from huggingface_hub import snapshot_download

    name = engine.dataset
    commit, _ = hub.dataset_commit(name, data.revision)
    configs = hub.configs(engine)
    try:
        if data.root:
            folder = Path(str(data.root)).expanduser() / name
            patterns = [f"{config or 'data'}/*" for config in configs]
            snapshot_download(name, repo_type="dataset", revision=commit, local_dir=folder,
                              allow_patterns=patterns)  # fmt: skip
            yield Fetched("data set", name, commit, folder)
            return
        for config in configs:
            loaded = datasets.load_dataset(name, config, revision=commit)
            file = next(f["filename"] for split in loaded.values() for f in split.cache_files)
            shown = f"{name} ({config})" if config else name
            yield Fetched("data set", shown, commit, Path(file).parent)
    except (OSError, ValueError) as error:
        raise HarnessError(f"data set {name}: {one_line(error)}") from error


def _table(table: str, root: str | None) -> Fetched:
    """A published VLMEvalKit table, checked against the md5 the package knows."""
    from vtprune.harness.evaluation.engines import vlm_import

    vlm_import.load()
    import vlmeval.dataset

    known = (c for c in vlmeval.dataset.DATASET_CLASSES if table in c.supported_datasets())
    found = next(known, None)
    if found is None:
        raise HarnessError(f"VLMEvalKit knows no data set {table}")
    folder = Path(root or os.environ.get(tables.LIBRARY_FOLDER) or "~/LMUData").expanduser()
    file = folder / f"{table}.tsv"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _download(found.DATASET_URL[table], file, found.DATASET_MD5.get(table))
    return Fetched("table", table, None, file)


def _download(url: str, file: Path, md5: str | None) -> None:
    """Into a file beside the target, which appears only when it is complete and right."""
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".fetch-") as folder:
        part = Path(folder) / file.name
        try:
            with urllib.request.urlopen(url) as source, part.open("wb") as target:
                shutil.copyfileobj(source, target, 2**20)
        except OSError as error:
            raise HarnessError(f"{url}: {one_line(error)}") from error
        got = tables.md5(part)
        if md5 and got != md5:
            raise HarnessError(f"{url}: md5 {got} is not the published {md5}")
        os.replace(part, file)
