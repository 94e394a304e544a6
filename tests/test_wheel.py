"""The package as it is installed: a wheel in an environment that has nothing else of ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("harness", "methods", "models", "training", "conf")


def tracked(*folders):
    command = ["git", "ls-files", "-co", "--exclude-standard", *folders]
    listed = subprocess.check_output(command, cwd=ROOT, text=True, encoding="utf-8").splitlines()
    return [name for name in listed if os.path.lexists(ROOT / name)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A clone, with what a machine's owner has in it: building must leave the checkout alone."""
    folder = tmp_path_factory.mktemp("clone")
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    (folder / "conf" / "local").mkdir()
    private = folder / "conf" / "local" / "default.yaml"
    private.write_text("paths: {results: /private}\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", folder, source)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def bin_folder(wheel, tmp_path_factory):
    """Programs of a new environment that sees the packages which are present here.

    Seen by way of a file of paths, whose own such files are not read: of an editable installation
    of this project nothing is found there.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "present.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    name = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    for git in (["init", "-q"], [*name, "commit", "-q", "--allow-empty", "-m", "the user's own"]):
        subprocess.run(["git", "-C", folder, *git], check=True)
    python = folder / "bin" / "python"
    pip("--python", python, "install", "--no-deps", "--no-index", "--ignore-installed", wheel)
    return folder / "bin"


def pip(*arguments):
    # Of a checkout on the path pip would see the metadata, and take it for installed.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pip", "-q", *map(str, arguments)], env=environment,
        capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def call(bin_folder, tmp_path):
    """Runs a program of the environment in an empty folder."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}

    def run(program, *arguments, status=0):
        done = subprocess.run(
            [bin_folder / program, *map(str, arguments)], cwd=tmp_path, env=environment,
            capture_output=True, text=True, timeout=300, encoding="utf-8",
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done

    return run


def test_a_wheel_holds_every_file_of_the_rooms_and_nothing_of_this_machine(wheel, source):
    held = zipfile.ZipFile(wheel)
    names = set(held.namelist())
    assert {f"vtprune/{name}" for name in tracked(*ROOMS)} <= names
    assert {f"vtprune/published/{Path(n).name}" for n in tracked("results/published")} <= names
    assert {"vtprune/py.typed", "vtprune/commands.py"} | set(tracked("hydra_plugins")) <= names
    assert not [name for name in names if name.startswith("vtprune/conf/local")]
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"vtprune", "hydra_plugins"}
    for name in names:
        content = held.read(name)
        assert str(ROOT).encode() not in content and str(source).encode() not in content, name


def test_a_source_distribution_holds_the_files_behind_the_links(source, wheel, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "-o", tmp_path, source],
        capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (packed,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(packed) as held:
        assert not [member.name for member in held.getmembers() if member.issym()]
    (again,) = tmp_path.glob("*.whl")  # made from the source distribution
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


def test_only_vtprune_can_be_imported(call, tmp_path):
    where = call("python", "-c", "import vtprune; print(vtprune.__file__)").stdout
    assert "site-packages/vtprune/__init__.py" in where and str(ROOT) not in where
    for name in ROOMS:
        assert "No module named" in call("python", "-c", f"import {name}", status=1).stderr


def test_help_and_errors_say_what_can_be_typed(call):
    told = call("vtprune", "--help").stdout
    assert "vtprune method=gprune ratio=0.9 bench=textvqa" in told and "vtprune tables" in told
    assert "run.py" not in told and "scripts/" not in told and "gprune" in told
    assert "vtprune tables table=NAME" in call("vtprune", "tables", "--help").stdout
    error = call("vtprune", "rati=0.9", status=2).stderr
    assert error.startswith("error: unknown option 'rati'") and error.count("\n") == 1


def test_a_cell_and_its_table_from_an_empty_folder(call, tmp_path):
    (tmp_path / "datasets").mkdir()  # hides nothing that is installed
    (tmp_path / "datasets" / "__init__.py").write_text("raise ImportError\n", encoding="utf-8")
    run = ("method=gprune", "ratio=0.9", "bench.limit=2", "progress=false")
    told = call("vtprune", *run).stdout
    assert "results: results/runs/textvqa/embedded/gprune-0.9-" in told
    assert told.rstrip().endswith("all cells so far: vtprune tables")
    (file,) = tmp_path.glob("results/runs/*/*/*/result.json")
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["n_samples"] == 2 and result["n_failed"] == 0
    origin = result["provenance"]  # not of a repository that happens to be around
    assert origin["commit"] is None and origin["modified"] is None
    assert "gprune" in call("vtprune", "tables").stdout
    plan = call("vtprune", "tables", "table=mini_table1", "plan").stdout
    assert "vtprune -m table=mini_table1" in plan and "run.py" not in plan


def test_a_sweep_with_a_method_and_a_model_file_of_the_working_directory(call, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom vtprune.methods import TokenMethod\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass First(TokenMethod):\n    title = 'first'\n\n"
        "    def score(self, view):\n        return -view.index.float()\n", encoding="utf-8",
    )  # fmt: skip
    (tmp_path / "conf" / "bench").mkdir(parents=True)
    own = "defaults: [textvqa, _self_]\nname: mytext\n"
    (tmp_path / "conf" / "bench" / "mytext.yaml").write_text(own, encoding="utf-8")
    call(
        "vtprune", "-m", "method=custom", "method._target_=mine.First", "ratio=0.5,0.75",
        "bench=mytext", "bench.limit=2", "progress=false", "hydra/launcher=joblib",
    )  # fmt: skip
    assert len(list(tmp_path.glob("results/runs/mytext/embedded/First-*/result.json"))) == 2
