"""Bad input: one clear line on stderr, non-zero exit, no traceback, and no torch before that."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests import command_tools
from vtprune.harness.request import explain, known
from vtprune.harness.request.errors import did_you_mean, one_line, unknown

ROOT = Path(__file__).resolve().parent.parent
# Runs run.py as the user does and reports on its last line what had been imported by then.
SPY = """
import atexit, os, runpy, sys
atexit.register(lambda: print("TORCH" if "torch" in sys.modules else "NO-TORCH"))
sys.argv = ["run.py", *sys.argv[1:]]
sys.path.insert(0, os.getcwd())
runpy.run_path("run.py", run_name="__main__")
"""


FETCH = "`python scripts/prefetch.py model=embedded bench=textvqa`"


def run(*arguments, **environment):
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "no_proxy": "127.0.0.1", "HYDRA_FULL_ERROR": ""}
    environment = {**os.environ, **nowhere, **environment}
    return command_tools.run("-c", SPY, *arguments, loaded=command_tools.CLI, env=environment)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder that passes every check made before the model is loaded."""
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "config.json").write_text(json.dumps({"model_type": "llava"}), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stranger")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    return folder


CASES = {
    "method": (["method=gprun", "ratio=0.9"], ["unknown method 'gprun'", "did you mean 'gprune'?"]),
    "bench": (["bench=textvq"], ["unknown bench 'textvq'", "did you mean 'textvqa'?"]),
    "model": (["model=embeded"], ["unknown model 'embeded'", "did you mean 'embedded'?"]),
    "data": (["data=hubb"], ["unknown data 'hubb'", "did you mean 'hub'?"]),
    "key": (["rati=0.9"], ["unknown option 'rati'", "did you mean 'ratio'?"]),
    "added key": (["+rati=0.9"], ["unknown option 'rati'", "did you mean 'ratio'?"]),
    "nested key": (["bench.limt=3"], ["option of bench 'limt'", "did you mean 'limit'?"]),
    "method option": (
        ["method=gprune", "ratio=0.9", "method.iteration=3"],
        ["option of method gprune 'iteration'", "did you mean 'iterations'?"],
    ),
    "added method option": (
        ["method=compose", "ratio=0.6", "+method.part=[]"],
        ["option of method compose 'part'", "did you mean 'parts'?"],
    ),
    "unlisted method option": (
        ["method=compose", "ratio=0.6", "method.parts=[]"], ["write +method.parts=..."],
    ),
    "ratio in method": (["method=gprune", "method.ratio=0.9"], ["write ratio=..."]),
    "case": (["bench=TextVQA"], ["unknown bench 'TextVQA'", "did you mean 'textvqa'?"]),
    "hub id": (["model=llava-hf/llava-1.5-7b-hf"], ["is called model=llava15_7b here"]),
    "other hub id": (["model=org/vlm"], ["no config knows model=org/vlm", "model.hub=org/vlm"]),
    "percent": (["method=gprune", "ratio=90%"], ["got '90%'; did you mean 0.9?"]),
    "ratios": (["method=gprune", "ratio=[0.5,0.7]"], ["several are a sweep: -m ratio=0.5,0.7"]),
    "inner": (["limit=8"], ["unknown option 'limit'", "did you mean 'bench.limit'?"]),
    "ratio 1": (["method=gprune", "ratio=1.0"], ["ratio must be a number in [0, 1): got 1.0"]),
    "ratio below": (
        ["method=gprune", "ratio=-0.1"],
        ["ratio must be a number in [0, 1): got -0.1"],
    ),
    "ratio above": (["method=gprune", "ratio=1.5"], ["ratio must be a number in [0, 1): got 1.5"]),
    "ratio text": (["method=gprune", "ratio=abc"], ["ratio must be a number in [0, 1): got 'abc'"]),
    "ratio nan": (["method=gprune", "ratio=nan"], ["ratio must be a number in [0, 1)"]),
    "ratio bool": (["method=gprune", "ratio=true"], ["ratio must be a number in [0, 1)"]),
    "no ratio": (["method=gprune"], ["method=gprune needs a ratio"]),
    "ratio of none": (["method=none", "ratio=0.5"], ["method=none removes nothing"]),
    "limit": (["bench.limit=0"], ["bench.limit must be a whole number >= 1"]),
    "limit and indices": (["bench.limit=2", "bench.indices=[1]"], ["not both"]),
    "batch size": (["batch_size=0.5"], ["batch_size must be a whole number"]),
    "checkpoint": (["model.path=/no/such/dir"], ["no such checkpoint directory: /no/such/dir"]),
    "timing": (["task=time", "timing.repeats=0"], ["timing.repeats", ">= 1"]),
    "budget": (["budget.flops=0.4", "ratio=0.5", "method=gprune"], ["not both"]),
    "unknown task": (["task=cel"], ["unknown task 'cel'", "did you mean 'cell'?"]),
    "not key=value": (["gprune"], ["expected key=value"]),
    "sweep without -m": (["method=random,gprune"], ["add -m"]),
    "missing target": (["method=custom", "ratio=0.5"], ["method._target_ must be given"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_request_is_one_line_before_torch_is_imported(case):
    arguments, expected = CASES[case]
    assert_refused(run(*arguments), expected)


def assert_refused(done, expected):
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    for part in expected:
        assert part in done.stderr
    assert done.stdout.strip() == "NO-TORCH", done.stdout


def test_an_unsupported_architecture_names_the_supported_ones(stranger):
    done = run(f"model.path={stranger}")
    assert_refused(done, ["unsupported architecture 'bert'", "llava, llava_next"])


def test_a_folder_without_a_config_is_no_checkpoint(tmp_path):
    assert_refused(run(f"model.path={tmp_path}"), ["holds no config.json"])


def test_hub_data_without_a_network_says_what_to_do(checkpoint, tmp_path):
    done = run(f"model.path={checkpoint}", "data=hub", HF_HOME=str(tmp_path))
    assert_refused(done, ["cannot be reached", FETCH, "data=mini"])


def test_hub_data_in_offline_mode_is_refused_without_a_question(checkpoint, tmp_path):
    done = run(f"model.path={checkpoint}", "data=hub", HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert_refused(done, ["offline mode is on", FETCH])


def test_a_hub_model_without_a_network_says_what_to_do(tmp_path):
    done = run("model=llava15_7b", HF_HOME=str(tmp_path))
    fetch = "`python scripts/prefetch.py model=llava15_7b bench=textvqa`"
    assert_refused(done, ["llava-hf/llava-1.5-7b-hf", fetch, "model.path=DIR"])


def test_debug_shows_the_traceback_as_well():
    done = run("method=gprune", "ratio=2", "debug=true")
    assert done.returncode == 2 and "Traceback" in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ratio must be")


def test_a_sweep_lists_its_failures_at_the_end_and_the_others_go_on(tmp_path):
    results = f"paths.results={tmp_path}"
    done = run("-m", "method=gprune", "ratio=1.0,abc", "model.path=/no/such/dir", results)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    *_, first, second = done.stderr.strip().splitlines()
    assert first.startswith("failed: [0] ") and "got 1.0" in first
    assert second.startswith("failed: [1] ") and "got 'abc'" in second


def test_help_is_friendly_and_needs_no_torch():
    done = run("--help")
    assert done.returncode == 0 and done.stdout.rstrip().endswith("NO-TORCH")
    for part in ("method=gprune ratio=0.9", "Groups", "results/runs/", "force=true"):
        assert part in done.stdout


def test_composing_prints_the_config():
    done = run("--cfg", "job", "method=gprune")
    assert done.returncode == 0 and "threshold: 0.5" in done.stdout


def test_the_nearest_name_is_suggested_only_when_it_is_near():
    assert did_you_mean("gprun", ["gprune", "none"]) == "; did you mean 'gprune'?"
    assert did_you_mean("zzz", ["gprune", "none"]) == ""
    assert unknown("method", "x", ["a", "b"]) == "unknown method 'x' (available: a, b)"


def test_long_foreign_errors_become_one_short_line():
    text = one_line(ValueError("\n\n  first\nsecond " + "x" * 999))
    assert text == "ValueError: first"
    assert len(one_line(ValueError("x" * 999))) == 400


def test_every_known_key_is_found_for_a_group():
    keys = known.keys({"method": "gprune", "bench": "textvqa"})
    assert {"ratio", "method.threshold", "bench.limit", "decoding.max_new_tokens"} <= set(keys)
    line = explain.unknown_option("decoding.max_tokens", keys, {})
    assert "did you mean 'decoding.max_new_tokens'?" in line
