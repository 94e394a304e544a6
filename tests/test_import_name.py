"""One import name, `vtprune`, wherever Python starts and whatever lies there."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from vtprune import methods, places
from vtprune.harness.sweep import slurm
from vtprune.harness.sweep.launchers import Job
from vtprune.harness.sweep.plan import Plan

ROOT = Path(__file__).resolve().parent.parent
OURS = ("harness", "methods", "models", "training", "tests", "conf")
METHOD = '''
from dataclasses import dataclass
from vtprune.methods import TokenMethod

models = __import__("models")


@dataclass(frozen=True, kw_only=True)
class First(TokenMethod):
    """Keeps the first tokens; its folder has a package `models` of its own."""

    title = "first"

    def score(self, view):
        assert models.MINE
        return -view.index.float()
'''


@pytest.fixture(scope="module")
def links(tmp_path_factory):
    """What an installation puts on the path: `vtprune`, Hydra's plugins, and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("vtprune", "hydra_plugins"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture
def hostile(tmp_path):
    """A working directory with packages, and a conf/, called like ours."""
    for name in OURS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("MINE = True\n", encoding="utf-8")
    conf = {"config.yaml": "defaults: [nothing: here]\n", "method/none.yaml": "name: [\n",
            "model/resnet.yaml": "depth: 50\n"}  # fmt: skip
    for name, text in conf.items():
        (tmp_path / "conf" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "conf" / name).write_text(text, encoding="utf-8")
    (tmp_path / "mine.py").write_text(METHOD, encoding="utf-8")
    return tmp_path


def python(links, folder, *arguments, **more):
    environment = {**os.environ, "PYTHONPATH": str(links), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=folder, env=environment, capture_output=True,
        timeout=300, **more,
    )  # fmt: skip


def test_the_name_means_this_package_and_the_other_names_are_the_folders_own(links, hostile):
    code = "import vtprune, models, harness, methods\nfrom vtprune import prune, PruningRun\n" \
           "from vtprune.methods import available\n" \
           "assert models.MINE and harness.MINE and methods.MINE and 'gprune' in available()\n" \
           "assert prune.__module__.startswith('vtprune.models')"  # fmt: skip
    done = python(links, hostile, "-c", code)
    assert done.returncode == 0, done.stderr.decode()


def test_an_installed_package_leaves_its_rooms_off_the_path(links, tmp_path):
    for name in ("harness", "methods", "models", "training"):
        done = python(links, tmp_path, "-c", f"import vtprune.harness, {name}")
        assert f"No module named '{name}'" in done.stderr.decode()


def test_objects_are_pickled_by_the_one_name(links, hostile):
    """A method to a worker, and the job that submitit hands to its process."""
    method = methods.build("gprune", ratio=0.9)
    sent = pickle.dumps([method, Job(Path("sweep"), 3)])
    code = "import pickle, sys\nmethod, job = pickle.load(sys.stdin.buffer)\n" \
           "print(type(method).__module__, method.ratio, type(job).__module__)"  # fmt: skip
    told = python(links, hostile, "-c", code, input=sent).stdout.decode().split()
    assert told == [type(method).__module__, "0.9", "vtprune.harness.sweep.launchers"]


def test_a_child_finds_what_its_parent_finds_and_nothing_that_is_hidden_there(links, hostile):
    code = "from vtprune import places; print(places.environment().get('PYTHONPATH'))"
    assert python(links, hostile, "-P", "-c", code).stdout.decode().strip() == str(links)
    both = f"{hostile}{os.pathsep}{links}"
    assert python(links, hostile, "-c", code).stdout.decode().strip() == both


def test_the_folder_of_the_installed_command_is_not_handed_on(monkeypatch, tmp_path):
    programs = sysconfig.get_path("scripts")
    monkeypatch.setattr(sys, "path", [programs, str(tmp_path), *sys.path])
    assert places.environment()["PYTHONPATH"].split(os.pathsep)[0] == str(tmp_path)


def test_a_checkout_that_is_not_installed_is_found_by_the_children_of_its_script(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom vtprune import places\n"
        "print(places.environment()['PYTHONPATH'])", encoding="utf-8",
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.stdout.strip().split(os.pathsep)[0] == str(ROOT), done.stderr


def test_a_slurm_job_stays_where_it_was_submitted_and_finds_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    options = {"array_parallelism": 1, "signal_delay_s": 60, "max_requeue": 1}
    lines = slurm.script(Plan(tmp_path, (), ((0,),), ""), options).splitlines()
    assert not [line for line in lines if line.startswith("cd ")]
    (line,) = [line for line in lines if line.startswith("export PYTHONPATH=")]
    assert line.startswith(f"export PYTHONPATH={tmp_path}") and line.endswith(":$PYTHONPATH}")
    assert places.module("harness.sweep.supervisor")[1:3] == ["-P", "-m"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_a_sweep_runs_in_a_folder_full_of_our_names(links, hostile, launcher):
    """A method of that folder, which uses that folder's `models`, in processes of its own."""
    done = python(
        links, hostile, "-m", "vtprune", "-m", "method=custom", "method._target_=mine.First",
        "ratio=0.5,0.75", "bench.limit=2", "progress=false", f"hydra/launcher={launcher}",
        "paths.results=out",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    found = [json.loads(f.read_text(encoding="utf-8")) for f in hostile.glob("out/**/result.json")]
    assert sorted(result["ratio"] for result in found) == [0.5, 0.75]
    assert {result["method"] for result in found} == {"First"}
