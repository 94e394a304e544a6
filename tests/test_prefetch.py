"""Fetching what a cell needs, and what a run without it says."""

from __future__ import annotations

import hashlib
import importlib.util
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from tests import hub_tools
from tests.bench_tools import config as bench_config
from vtprune.harness.cell import prepare as settings
from vtprune.harness.evaluation import prefetch, prefetch_command
from vtprune.harness.request import hub
from vtprune.harness.request.benches import seen_by_engine
from vtprune.harness.request.errors import ConfigError, HarnessError
from vtprune.harness.request.request import Task

COMMIT = "c" * 40


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """An own cache, and a hub that does not answer."""
    hub_tools.settle(monkeypatch, tmp_path / "hf")
    monkeypatch.delenv("LMUData", raising=False)

    def unreachable(path, shown):
        raise hub.Unreachable("no answer")

    monkeypatch.setattr(hub, "_get", unreachable)


def composed(*arguments):
    (made,) = prefetch_command.requests(list(arguments))
    return made


def test_a_list_of_benchmarks_is_one_config_each_and_hub_is_understood():
    made = prefetch_command.requests(["model=llava15_7b", "bench=[gqa,mme]"])
    assert [r.bench.name for r in made] == ["gqa", "mme"]
    assert {r.data.source for r in made} == {"hub"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["model=llava15_7b", "bench=textvqa"],
        ["model=llava_next_8b", "bench=gqa", "data.revision=abc"],
        ["model=llava15_7b", "bench=mme", "engine=vlmevalkit"],
        ["model=llava15_7b", "bench=mme", "data.root=/scratch/data"],
    ],
)
def test_the_command_named_is_the_one_that_was_meant(arguments):
    chosen = dict(a.split("=") for a in arguments[:2])
    named = prefetch.command(composed(*arguments).changed(choices=chosen))
    assert sorted(named.split()) == sorted(["python", "scripts/prefetch.py", *arguments])


def test_a_run_without_it_names_the_command(tmp_path):
    config = composed("model=llava15_7b", "bench=pope", f"paths.results={tmp_path}")
    config = config.changed(choices={"model": "llava15_7b", "bench": "pope"})
    with pytest.raises(ConfigError) as caught:
        settings.prepare(config)
    line = str(caught.value)
    assert "`python scripts/prefetch.py model=llava15_7b bench=pope`" in line
    assert "\n" not in line and "llava-hf/llava-1.5-7b-hf is not in the local cache" in line


def prepared(home: Path, dataset: str, config: str, commit: str = COMMIT) -> Path:
    folder = home / "datasets" / dataset.replace("/", "___") / config / "0.0.0" / commit
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}", encoding="utf-8")
    (folder / "data.arrow").write_bytes(b"x" * 2000)
    return folder


def test_half_of_a_data_set_is_not_enough(tmp_path):
    engine = Task.of(bench_config("gqa")["engines"]["lmms_eval"])
    names = hub.configs(engine)
    assert names == ["testdev_balanced_instructions", "testdev_balanced_images"]
    prepared(tmp_path / "hf", engine.dataset, names[0])
    with pytest.raises(ConfigError, match="not in the local cache"):
        hub.dataset_commit(engine.dataset, None, names)
    prepared(tmp_path / "hf", engine.dataset, names[1])
    assert hub.dataset_commit(engine.dataset, None, names)[0] == COMMIT


def test_both_tables_of_gqa_are_prepared_at_one_commit(tmp_path, monkeypatch):
    import datasets

    asked = []

    def load(name, config, revision):
        folder = prepared(tmp_path / "hf", name, config, revision)
        asked.append((name, config, revision))
        split = SimpleNamespace(cache_files=[{"filename": str(folder / "data.arrow")}])
        return {"testdev": split}

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub, "_get", lambda path, shown: {"sha": COMMIT})
    items = list(prefetch.fetch(composed("model=embedded", "bench=gqa")))
    assert [(name, revision) for name, _, revision in asked] == [
        ("lmms-lab-encoder/GQA", COMMIT)
    ] * 2
    assert [item.size for item in items] == [2002, 2002]
    assert "lmms-lab-encoder/GQA (testdev_balanced_images) @ cccccccc" in items[1].line()
    assert "2.0 KB" in items[1].line()


def test_into_a_folder_only_the_configs_that_are_read_are_downloaded(tmp_path, monkeypatch):
    import huggingface_hub

    asked = {}

    def download(name, *, repo_type, revision, local_dir, allow_patterns):
        asked.update(name=name, patterns=allow_patterns, revision=revision)
        Path(local_dir).mkdir(parents=True)
        (Path(local_dir) / "test.parquet").write_bytes(b"x" * 10)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(hub, "_get", lambda path, shown: {"sha": COMMIT})
    (item,) = prefetch.fetch(
        composed("model=embedded", "bench=mmbench_cn", f"data.root={tmp_path}")
    )
    assert asked == {"name": "lmms-lab-encoder/MMBench", "patterns": ["cn/*"], "revision": COMMIT}
    assert item.size == 10 and item.folder == tmp_path / "lmms-lab-encoder/MMBench"


def test_offline_mode_is_no_time_to_fetch(monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert prefetch_command.main(["model=llava15_7b", "bench=gqa"]) == 1
    assert capsys.readouterr().err.startswith("error: offline mode is on")


def test_mistakes_are_one_line(capsys):
    assert prefetch_command.main(["model=llava15_7b", "bench=gqaa"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "did you mean 'gqa'" in err


@pytest.fixture
def website():
    pages: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(pages[self.path])

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", pages
    server.shutdown()


def test_a_table_appears_only_when_it_is_the_published_one(tmp_path, website):
    address, pages = website
    pages["/POPE.tsv"] = b"index\tquestion\n"
    target = tmp_path / "POPE.tsv"
    with pytest.raises(HarnessError, match="is not the published"):
        prefetch._download(f"{address}/POPE.tsv", target, "0" * 32)
    assert list(tmp_path.iterdir()) == []
    right = hashlib.md5(pages["/POPE.tsv"]).hexdigest()
    prefetch._download(f"{address}/POPE.tsv", target, right)
    assert target.read_bytes() == pages["/POPE.tsv"]


@pytest.mark.skipif(importlib.util.find_spec("vlmeval") is None, reason="needs ms-vlmeval")
def test_the_table_of_the_other_engine_is_fetched_from_its_own_address(
    tmp_path, website, monkeypatch
):
    from vtprune.harness.evaluation.engines import vlm_import

    vlm_import.load()
    from vlmeval.dataset.image_yorn import ImageYORNDataset

    address, pages = website
    pages["/MME.tsv"] = b"index\tquestion\n"
    monkeypatch.setitem(ImageYORNDataset.DATASET_URL, "MME", f"{address}/MME.tsv")
    monkeypatch.setitem(ImageYORNDataset.DATASET_MD5, "MME", None)
    config = composed("model=embedded", "bench=mme", "engine=vlmevalkit", f"data.root={tmp_path}")
    (item,) = prefetch.fetch(config)
    assert item.folder == tmp_path / "MME.tsv" and item.size == 15
    config = seen_by_engine(config)
    from vtprune.harness.evaluation.data import source

    made = source.prepare(config.data, config.bench, config.entry, tmp_path)
    assert made.identity["table"] == "MME"
