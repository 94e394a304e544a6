"""The hub, its cache and its absence, against a small server of our own."""

from __future__ import annotations

import http.server
import json
import threading
import time
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from tests import hub_tools
from vtprune.harness.evaluation.data import redirect, source
from vtprune.harness.request import checkpoint, hub
from vtprune.harness.request.errors import ConfigError, HarnessError
from vtprune.harness.request.request import Bench, Data, Model, Task

COMMIT = "a" * 40
ENGINE = {"dataset": "org/data", "split": "test"}


class Hub(http.server.BaseHTTPRequestHandler):
    answers: dict[str, object] = {}  # noqa: RUF012  path -> JSON, or an HTTP status

    def do_GET(self) -> None:
        found = self.answers.get(self.path, 404)
        self.send_response(found if isinstance(found, int) else 200)
        self.end_headers()
        if not isinstance(found, int):
            self.wfile.write(json.dumps(found).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    hub_tools.ask(monkeypatch, f"http://127.0.0.1:{made.server_port}")
    monkeypatch.setattr(Hub, "answers", {})
    yield Hub.answers
    made.shutdown()
    made.server_close()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    hub_tools.settle(monkeypatch, tmp_path, "http://127.0.0.1:9")


def cached_dataset(home, commit, when=0.0):
    folder = home / "datasets/org___data/default/0.0.0" / commit
    folder.mkdir(parents=True)
    file = folder / "dataset_info.json"
    file.write_text("{}", encoding="utf-8")
    if when:
        import os

        os.utime(file, (when, when))


def cached_model(home, commit=COMMIT):
    base = home / "hub/models--org--model"
    (base / "refs").mkdir(parents=True)
    (base / "refs/main").write_text(commit, encoding="utf-8")
    folder = base / "snapshots" / commit
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llava"}', encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"x")
    return folder


def test_the_commit_of_a_data_set_is_asked_and_recorded(server, tmp_path):
    server["/api/datasets/org/data/revision/main"] = {"sha": COMMIT}
    made = source.prepare(Data("hub"), Bench("textvqa"), Task.of(ENGINE), tmp_path)
    assert made.identity == {"source": "hub", "dataset": "org/data", "revision": COMMIT}
    assert (made.revision, made.note) == (COMMIT, None)


def test_without_a_network_the_cached_commit_is_used_and_said(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    cached_dataset(tmp_path, "b" * 40, when=1000.0)
    cached_dataset(tmp_path, COMMIT, when=2000.0)
    made = source.prepare(Data("hub"), Bench("textvqa"), Task.of(ENGINE), tmp_path)
    assert made.revision == COMMIT, "the one prepared last, which the library will take as well"
    assert "hub not reachable" in made.note and hub.offline()
    assert datasets.config.HF_HUB_OFFLINE, "a library that was imported before knows it, too"


def test_a_commit_that_is_not_cached_is_not_replaced_by_another(tmp_path):
    cached_dataset(tmp_path, "b" * 40)
    asked = Data("hub", revision=COMMIT)
    with pytest.raises(ConfigError, match="not in the local cache"):
        source.prepare(asked, Bench("textvqa"), Task.of(ENGINE), tmp_path)


def test_a_commit_other_than_the_recorded_one_is_refused():
    file = {"filename": f"/cache/org___data/default/0.0.0/{'b' * 40}/data-test.arrow"}
    loaded = {"test": SimpleNamespace(cache_files=[file])}
    redirect._check_revision(loaded, "org/data", "b" * 40)
    with pytest.raises(HarnessError, match="newest copy in the cache is bbbbbbbb"):
        redirect._check_revision(loaded, "org/data", COMMIT)


def test_a_missing_or_gated_id_is_told_apart_from_a_missing_network(server):
    with pytest.raises(ConfigError, match=r"data set org/data does not exist \(HTTP 404\)"):
        hub.dataset_commit("org/data", None, "textvqa")
    server["/api/models/org/model/revision/main"] = 401
    with pytest.raises(ConfigError, match="gated"):
        hub.model_config("org/model", None)
    server["/api/datasets/org/data/revision/main"] = 503
    with pytest.raises(ConfigError, match="HTTP 503"):
        hub.dataset_commit("org/data", None, "textvqa")


def test_a_cached_model_needs_no_network(tmp_path):
    folder = cached_model(tmp_path)
    found = checkpoint.find(Model(hub="org/model"))
    assert (found.path, found.model_type) == (folder, "llava")
    assert found.fingerprint() == f"org/model@{COMMIT}"


def test_a_half_downloaded_model_is_not_complete(tmp_path):
    folder = cached_model(tmp_path)
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert hub._missing_shards(folder) == ["model-2.safetensors"]


def test_an_unsupported_hub_model_is_refused_before_it_is_downloaded(server):
    server["/api/models/org/model/revision/main"] = {"sha": COMMIT}
    server[f"/org/model/resolve/{COMMIT}/config.json"] = {"model_type": "bert"}
    with pytest.raises(ConfigError, match="unsupported architecture 'bert' in org/model"):
        checkpoint.find(Model(hub="org/model"))


def test_the_users_token_goes_along_and_stays_away_where_that_is_said(server, monkeypatch):
    seen = []
    monkeypatch.setattr(hub, "_in_time", lambda request: seen.append(request) or {"sha": COMMIT})
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    hub.dataset_commit("org/data", None)
    assert seen[0].get_header("Authorization") == "Bearer hf_of_a_test"
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    hub.dataset_commit("org/data", None)
    assert seen[1].get_header("Authorization") is None


def test_a_model_is_found_by_commit_branch_and_default(tmp_path):
    folder = cached_model(tmp_path)
    for revision in (None, "main", COMMIT):
        assert hub.model_config("org/model", revision) == ({"model_type": "llava"}, COMMIT)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="not in the local cache"):
        hub.model_config("org/model", None)


def test_a_silent_server_costs_no_more_than_the_time_limit(monkeypatch):
    monkeypatch.setattr(hub, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(hub.urllib.request, "urlopen", lambda *_, **__: time.sleep(3))
    started = time.perf_counter()
    with pytest.raises(ConfigError, match="cannot be reached"):
        hub.dataset_commit("org/data", None, "textvqa")
    assert time.perf_counter() - started < 2
