"""Several benchmarks in one process: one model load, a cell each."""

from __future__ import annotations

import json

import pytest

from tests import checkpoint_tools
from vtprune.harness import cli
from vtprune.harness.request import several
from vtprune.harness.request.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "made"),
    [
        (["bench=[gqa,pope]"], ["bench=gqa", "benches=[gqa,pope]"]),
        (["bench=[ gqa , 'pope' ]", "ratio=0.9"], ["bench=gqa", "benches=[gqa,pope]", "ratio=0.9"]),
        (["bench=gqa"], ["bench=gqa"]),
        (["-m", "bench=gqa,pope"], ["-m", "bench=gqa,pope"]),
        (["bench.indices=[0,5]"], ["bench.indices=[0,5]"]),
    ],
)
def test_a_list_becomes_what_hydra_takes(given, made):
    assert several.arguments(given) == made


@pytest.mark.parametrize("given", ["bench=[]", "bench=[gqa,]", "bench=[gqa,gqa]"])
def test_an_odd_list_is_refused(given):
    with pytest.raises(ConfigError, match="bench="):
        several.arguments([given])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return checkpoint_tools.save(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def run(checkpoint, tmp_path, capsys, monkeypatch):
    """Runs the command line; returns exit status, stdout, stderr and how often a model loaded."""
    from vtprune.models import load as loading

    loads = []
    real = loading._load
    monkeypatch.setattr(loading, "_load", lambda *a: loads.append(a) or real(*a))
    loading._CACHE.clear()

    def go(*arguments):
        common = [f"model.path={checkpoint}", f"paths.results={tmp_path}", "data.samples=4"]
        status = cli.main([*arguments, *common, "decoding.max_new_tokens=2"])
        return status, *capsys.readouterr(), len(loads)

    return go


def scores(folder):
    files = sorted(folder.glob("runs/*/*/*/result.json"))
    return [(f.parts[-4], json.loads(f.read_text(encoding="utf-8"))["n_samples"]) for f in files]


def test_each_benchmark_is_a_cell_of_its_own(run, tmp_path):
    status, out, err, loads = run("bench=[textvqa,gqa]", "bench.limit=3")
    assert (status, err, loads) == (0, "", 1)
    assert scores(tmp_path) == [("gqa", 3), ("textvqa", 3)]
    assert "gqa baseline gate" in out and "textvqa baseline gate" in out
    status, out, _, _ = run("bench=gqa", "bench.limit=3")
    assert "finished on" in out, "the same cell as when it is asked for alone"


def test_a_sweep_over_benchmarks_loads_the_model_once(run, tmp_path):
    status, out, _, loads = run("-m", "bench=textvqa,gqa", "method=random", "ratio=0.5")
    assert (status, loads) == (0, 1) and scores(tmp_path) == [("gqa", 4), ("textvqa", 4)]
    status, out, _, _ = run("-m", "bench=[textvqa,gqa]", "method=random", "ratio=0.5,0.25")
    assert status == 0 and len(scores(tmp_path)) == 4 and "2 of 4 cells are finished already" in out


def test_one_that_fails_leaves_the_others(run, tmp_path):
    status, _, err, _ = run("bench=[scienceqa,gqa]", "bench.indices=[7]")
    assert status == 1 and scores(tmp_path) == []
    assert err.count("error: bench=") == 2 and "2 of 2 benchmarks failed" in err
    status, _, err, _ = run("bench=[mme,gqa]", "bench.indices=[1]")
    assert status == 1 and scores(tmp_path) == [("gqa", 1)]
    assert "error: bench=mme: bench.indices: mme scores rows" in err and "1 of 2" in err


def test_a_misspelt_name_is_answered_before_anything_runs(run, tmp_path):
    status, _, err, loads = run("bench=[gqa,popee]")
    assert (status, loads) == (2, 0) and "did you mean 'pope'" in err
    assert not (tmp_path / "runs").exists()
