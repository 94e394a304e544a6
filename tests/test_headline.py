"""The README's main command, exactly as written there, on eight samples."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests import command_tools

ROOT = Path(__file__).resolve().parent.parent


def headline() -> list[str]:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The main command")[2]
    return shlex.split(re.search(r"^ {4}(python run\.py .+)$", section, re.M)[1])


@pytest.mark.slow
def test_the_main_command_runs_and_stores_what_it_prints(tmp_path):
    program, *arguments = headline()
    assert program == "python"
    done = command_tools.run(*arguments, "bench.limit=8", f"paths.results={tmp_path}")
    assert (done.returncode, done.stderr) == (0, "")
    (file,) = tmp_path.glob("runs/textvqa/embedded/gprune-0.9-*/result.json")
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["n_samples"] == 8 and result["n_failed"] == 0 and result["data"] == "mini"
    assert 0.89 < result["counters"]["removal"] < 0.92
    for part in ("gprune", "mini", f"{result['score']:.2f}", "not the benchmark", str(file.parent)):
        assert part in done.stdout
