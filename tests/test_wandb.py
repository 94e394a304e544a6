"""The W&B mirror: what offline files hold, publishing twice, and servers that are not there.

Uploads and dashboards go to a stand-in server in this process; nothing was tried on the real one.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest
import yaml

from tests import checkpoint_tools, command_tools, wandb_tools
from vtprune.harness import cli
from vtprune.harness.cell import publish as loggers
from vtprune.harness.reporting.tracker import run as wandb_run
from vtprune.harness.request.request import Logger

ROOT = Path(__file__).resolve().parent.parent
LOGGER = yaml.safe_load((ROOT / "conf/logger/wandb.yaml").read_text(encoding="utf-8"))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two finished cells, one of them mirrored at the end of its run."""
    folder = tmp_path_factory.mktemp("wandb")
    path = checkpoint_tools.save(folder / "tiny")
    common = [f"model.path={path}", "data.samples=4", "decoding.max_new_tokens=2", "ratio=0.5",
              f"paths.results={folder / 'results'}"]  # fmt: skip
    assert cli.main(["method=gprune", "logger=wandb", "logger.samples=3", *common]) == 0
    assert cli.main(["method=random", *common]) == 0
    return folder / "results"


def cell(results, method):
    (folder,) = results.glob(f"runs/*/*/{method}-*")
    return folder, json.loads((folder / "result.json").read_text(encoding="utf-8"))


def sync(results, *arguments, **environment):
    line = ["scripts/wandb_sync.py", "--results", str(results), *arguments]
    environment = {**os.environ, **environment}
    return command_tools.run(*line, env=environment, loaded=command_tools.CLI)


def test_an_offline_run_holds_what_the_store_holds(results):
    folder, result = cell(results, "gprune")
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    run = wandb_tools.read_run(file)
    assert run["run"]["run_id"] == result["key"][:16]
    assert run["run"]["run_group"] == run["run"]["job_type"] == "textvqa"
    assert run["run"]["display_name"] == "embedded gprune 0.5"
    assert run["config"]["identity"] == result["identity"]
    assert (run["config"]["method"], run["config"]["ratio"]) == ("gprune", 0.5)
    assert run["config"]["data"] == "mini"
    for name, value in wandb_run.summary(result).items():
        assert run["summary"][name] == pytest.approx(value), name
    stages = {"macs/vision", "macs/projector", "macs/selection", "macs/llm", "macs/total"}
    assert stages | {"score", "tflops", "removal", "accuracy_pass/samples_per_s"} <= set(
        run["summary"]
    )
    assert len(run["history"]) == 1
    ((_, kind, files),) = [a for a in run["artifacts"] if a[1] == "cell"]
    assert kind == "cell" and set(files) == {"result.json", "samples.jsonl", "cell.yaml"}


def test_the_table_of_predictions_has_answers_and_pictures(results):
    folder, _ = cell(results, "gprune")
    (file,) = folder.glob("wandb/offline-run-*/files/media/table/predictions_*.table.json")
    table = json.loads(file.read_text(encoding="utf-8"))
    journal = [
        json.loads(x) for x in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [r["doc_id"] for r in rows] == [0, 1, 2], "logger.samples=3"
    for row, entry in zip(rows, journal, strict=False):
        assert row["prompt"] == entry["prompt"] and row["answer"] == entry["answer"]
        assert row["kept"] == entry["visual_kept"] and row["overlay"] is not None


def test_publishing_is_idempotent_and_follows_a_new_result(results):
    done = sync(results)
    assert done.returncode == 0, done.stderr
    assert "2 finished cells: 1 published, 1 were there already, 0 left" in done.stdout
    assert "0 published, 2 were there already" in sync(results).stdout
    folder, result = cell(results, "random")
    (folder / "result.json").write_text(json.dumps({**result, "score": 12.5}), encoding="utf-8")
    assert "1 published, 1 were there already" in sync(results).stdout
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    assert wandb_tools.read_run(file)["summary"]["score"] == 12.5
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def test_online_runs_reach_the_server_once(results):
    server = wandb_tools.FakeServer()
    try:
        key = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40}
        online = ("--online", "--entity", "lab")
        done = sync(results, *online, **key)
        assert done.returncode == 0, done.stderr
        assert "2 published" in done.stdout
        runs = {call["name"] for call in server.operations("UpsertBucket")}
        assert runs == {cell(results, m)[1]["key"][:16] for m in ("gprune", "random")}
        summaries = [b for kind, name, b in server.calls
                     if kind == "post" and name.endswith("file_stream")
                     and "wandb-summary.json" in json.dumps(b)]  # fmt: skip
        put = [b for kind, name, b in server.calls if kind == "put" and b'"score"' in b]
        assert summaries or put, "no summary arrived"
        tables = [name for kind, name, _ in server.calls if kind == "put" and "media/table" in name]
        assert sum("cells_" in name for name in tables) == 2
        assert sum("predictions_" in name for name in tables) == 2
        before = len(server.operations("UpsertBucket"))
        assert "2 were there already" in sync(results, *online, **key).stdout
        assert len(server.operations("UpsertBucket")) == before
    finally:
        server.close()


@pytest.fixture
def silent_server():
    """Takes connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_does_not_answer_holds_nobody_up(results, silent_server, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", silent_server)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    folder, _ = cell(results, "random")
    start = time.monotonic()
    problem = loggers.publish(Logger.of({**LOGGER, "mode": "online", "timeout_s": 6}), folder)
    assert "no answer within 6 s" in problem and "wandb_sync.py" in problem
    assert time.monotonic() - start < 15


def test_a_run_without_key_or_server_is_done_all_the_same(results, tmp_path, capsys, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no key from an earlier login
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    path = results.parent / "tiny"
    status = cli.main(["method=random", "ratio=0.9", f"model.path={path}", "data.samples=2",
                       f"paths.results={tmp_path}", "decoding.max_new_tokens=2", "logger=wandb",
                       "logger.mode=online", "logger.timeout_s=30"])  # fmt: skip
    out, err = capsys.readouterr()
    assert status == 0 and "note: wandb: " in err and "random" in out
    assert len(list(tmp_path.glob("runs/*/*/*/result.json"))) == 1
    assert not list(tmp_path.glob("runs/*/*/*/wandb.json"))


def test_a_wrong_mode_is_refused_before_anything_runs(tmp_path, capsys):
    status = cli.main(["logger=wandb", "logger.mode=onlin", f"paths.results={tmp_path}"])
    assert status == 2 and "logger.mode must be offline or online" in capsys.readouterr().err


def made(monkeypatch, *benches, ratios=(), tables=()):
    """The dashboard as plain data, made without a server."""
    pytest.importorskip("wandb_workspaces", reason="pip install wandb-workspaces")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    from vtprune.harness.reporting.tracker import dashboard

    return dashboard.spec("lab", "p", dashboard.Shown(benches, ratios, tables))


def panels(spec):
    """Panels of every section of the workspace."""
    sections = spec["workspace"]["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections}


def used(panel):
    """Config keys and summary numbers a panel shows."""
    config = panel["config"]
    names = [config.get(k, "").removeprefix("summary:") for k in ("xAxis", "yAxis")]
    names += [m.removeprefix("summary_metrics.") for m in config.get("metrics", [])]
    names += [c["accessor"].partition(":")[2] for c in config.get("columns", [])]
    names += [config.get("groupBy", "")]
    return {name.removesuffix(".value") for name in names if name}


def test_the_dashboard_is_built_without_a_server(monkeypatch):
    spec = made(monkeypatch, "textvqa", "gqa", ratios=(0.5, 0.9), tables=["| a table |"])
    found = panels(spec)
    assert list(found) == ["Table", "textvqa", "gqa"]
    table, text = found["Table"]
    assert '"val": "cells"' in json.dumps(table) and text["config"]["value"] == "| a table |"
    kinds = ["Scatter Plot", "Bar Chart", "Bar Chart", "Bar Chart", "Parallel Coordinates Plot"]
    assert [p["viewType"] for p in found["gqa"]] == kinds
    scatter, rows, low, high, parallel = found["gqa"]
    assert scatter["config"]["xAxis"] == "summary:tflops"
    assert scatter["config"]["yAxis"] == "summary:gqa/score"
    assert rows["config"]["groupBy"] == "row.value"
    assert low["config"]["metrics"] == ["summary_metrics.gqa/score_at_0_5"]
    assert high["config"]["metrics"] == ["summary_metrics.gqa/score_at_0_9"]
    assert low["config"]["groupBy"] == high["config"]["groupBy"] == "method.value"
    shown = [c["accessor"] for c in parallel["config"]["columns"]]
    assert shown == ["config:method.value", "config:ratio.value", "summary:removal",
                     "summary:tflops", "summary:gqa/score"]  # fmt: skip
    (runs,) = spec["workspace"]["spec"]["section"]["runSets"]
    assert not runs["grouping"], "a group would be one point"
    assert runs["runFeed"]["columnPinned"]["summary:tflops"]
    blocks = json.dumps(spec["report"])
    assert "| a table |" in blocks and blocks.count("gqa: score vs TFLOPs") == 1


def test_runs_hold_what_the_panels_show_and_no_other_benchmark(results, monkeypatch):
    sync(results)
    found = panels(made(monkeypatch, "textvqa", "gqa", ratios=(0.5,)))
    for method in ("gprune", "random"):
        folder, result = cell(results, method)
        (file,) = folder.glob("wandb/offline-run-*/*.wandb")
        run = wandb_tools.read_run(file)
        there = {*run["config"], *run["summary"]}
        for panel in found["textvqa"]:
            assert used(panel) and used(panel) <= there, panel
        about = "summary_metrics.gqa", "gqa/"
        assert not any(name.startswith(about) for name in there), "gqa's panels stay empty"
        assert all(any(n.startswith("gqa/") for n in used(panel)) for panel in found["gqa"])
        assert run["summary"]["textvqa/score_at_0_5"] == result["score"]
        assert run["config"]["row"] == f"{method} 0.5"
        kind = run["summary"]["cells"]["_type"]
        assert kind == "table-file", "the panel of the table reads summary['cells']"
        (table,) = folder.glob("wandb/offline-run-*/files/media/table/cells_*.table.json")
        content = json.loads(table.read_text(encoding="utf-8"))
        (row,) = [dict(zip(content["columns"], line, strict=True)) for line in content["data"]]
        assert (row["method"], row["ratio"], row["score"]) == (method, 0.5, result["score"])
        assert row["tflops"] == pytest.approx(run["summary"]["tflops"])
        assert None not in row.values()


def test_the_dashboard_is_saved_to_a_server_with_a_run_set_per_benchmark(results):
    pytest.importorskip("wandb_workspaces", reason="pip install wandb-workspaces")
    server = wandb_tools.FakeServer()
    try:
        key = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40}
        line = ["--save", "--entity", "lab", "--results", str(results)]
        done = command_tools.run(
            "scripts/wandb_dashboard.py", *line, env={**os.environ, **key},
            loaded=command_tools.CLI,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        views = server.operations("UpsertView2") + server.operations("upsertView")
        assert any("Scatter Plot" in v["spec"] and "panelBankConfig" in v["spec"] for v in views)
        (report,) = [v for v in views if v.get("type") == "runs/draft"]
        grids = [b for b in json.loads(report["spec"])["blocks"] if b["type"] == "panel-grid"]
        ((runs,),) = [grid["metadata"]["runSets"] for grid in grids]
        assert runs["name"] == "textvqa"
        assert '"name": "bench"' in json.dumps(runs) and '"textvqa"' in json.dumps(runs["filters"])
    finally:
        server.close()


def test_benchmarks_and_ratios_come_from_the_store_or_a_table(results, tmp_path):
    def call(*arguments):
        line = ["scripts/wandb_dashboard.py", *map(str, arguments)]
        return command_tools.run(*line, loaded=command_tools.CLI)

    found = panels(json.loads(call("--results", results).stdout))
    assert list(found) == ["Table", "textvqa"]
    assert [p["config"].get("chartTitle") for p in found["textvqa"]].count(
        "textvqa: score at ratio 0.5"
    ) == 1
    found = panels(json.loads(call("--results", results, "--table", "mini_table3").stdout))
    assert list(found) == ["Table", "gqa", "pope", "textvqa"]
    text = found["Table"][1]["config"]["value"]
    assert "| G-Prune iterations 1 | 0.7 |" in text, "the table as it is printed"
    empty = call("--results", tmp_path)
    assert empty.returncode == 1 and empty.stderr.count("\n") == 1
    assert "no finished cells" in empty.stderr and "--table" in empty.stderr
