"""Methods that live in other packages: by class path, and by entry point."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests import command_tools

ROOT = Path(__file__).resolve().parent.parent
MODULE = '''
from dataclasses import dataclass
from vtprune.methods import TokenMethod, register


@dataclass(frozen=True, kw_only=True)
class FirstTokens(TokenMethod):
    """Keeps the first tokens of each view."""

    title = "first"
    power: float = 1.0

    def score(self, view):
        return -view.index.float() ** self.power
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A directory that looks like an installed package with an entry point."""
    (tmp_path / "elsewhere.py").write_text(MODULE, encoding="utf-8")
    info = tmp_path / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n", encoding="utf-8"
    )
    group = "[visual_token_pruning.methods]\nfirst_tokens = elsewhere:FirstTokens\n"
    (info / "entry_points.txt").write_text(group, encoding="utf-8")
    return tmp_path


def run(package: Path, *command: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": f"{package}{os.pathsep}{ROOT}"}
    return command_tools.run(*command, env=environment)


def test_an_entry_point_is_found_by_the_registry(package):
    code = "from vtprune import methods\n"
    code += "print(methods.build('first_tokens', ratio=0.5, power=2).name)"
    done = run(package, "-c", code)
    assert done.stdout.strip() == "first_tokens", done.stderr


@pytest.mark.slow
def test_a_class_path_runs_from_the_command_line(package):
    done = run(
        package, "run.py", "method._target_=elsewhere.FirstTokens", "+method.power=2", "ratio=0.5",
        "bench.limit=4", f"paths.results={package / 'results'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(
        next((package / "results").glob("runs/**/result.json")).read_text(encoding="utf-8")
    )
    assert result["method"] == "FirstTokens"
    assert result["identity"]["method"]["power"] == 2
    assert result["counters"]["removal"] == pytest.approx(0.5)


@pytest.mark.slow
def test_a_wrong_option_of_an_outside_method_names_the_nearest(package):
    done = run(
        package, "run.py", "method._target_=elsewhere.FirstTokens", "+method.powr=2", "ratio=0.5",
        f"paths.results={package / 'results'}",
    )  # fmt: skip
    assert done.returncode == 2
    assert "did you mean 'power'" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_documented_line_finds_a_method_by_its_entry_point(tmp_path):
    """The package and the line are those of docs/adding-a-method.md, as printed there."""
    text = (ROOT / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
    folder = tmp_path / "my_pkg"
    folder.mkdir()
    (folder / "__init__.py").touch()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    (folder / "my_file.py").write_text(code, encoding="utf-8")
    declared = re.search(r"```toml\n(.*?)```", text, re.DOTALL).group(1)
    entries = tomllib.loads(declared)["project"]["entry-points"]["visual_token_pruning.methods"]
    info = tmp_path / "my_pkg-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: my_pkg\nVersion: 1.0\n", encoding="utf-8"
    )
    points = "\n".join(f"{name} = {place}" for name, place in entries.items())
    (info / "entry_points.txt").write_text(
        f"[visual_token_pruning.methods]\n{points}\n", encoding="utf-8"
    )
    lines = re.findall(r"python (run\.py method\.name=[^`\n]*)", text)
    assert len(lines) == 2, "the plain line, and the one with an option"
    for number, line in enumerate(lines):
        results = tmp_path / f"results{number}"
        done = run(tmp_path, *line.split(), "bench.limit=4", f"paths.results={results}")
        assert done.returncode == 0, done.stderr
        result = json.loads(next(results.glob("runs/**/result.json")).read_text(encoding="utf-8"))
        assert result["method"] == result["identity"]["method"]["name"] == "my_pruner"
        assert result["identity"]["method"].get("power", 1.0) == (0.5 if "power" in line else 1.0)
        assert result["counters"]["removal"] == pytest.approx(0.9, abs=0.01)
        assert result["n_failed"] == 0
    typo = run(tmp_path, "run.py", "method.name=my_pruner", "+method.powr=1", "ratio=0.9")
    assert typo.returncode == 2 and "power" in typo.stderr and "Traceback" not in typo.stderr
