"""The method written out in the documentation is short and passes the contract as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def test_the_documented_method_passes_the_contract(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    assert len(code.splitlines()) <= 40
    package = tmp_path / "my_pkg"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "my_file.py").write_text(code, encoding="utf-8")
    command = re.search(r"pytest (tests/contract --method \S+)", text).group(1).split()
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *command, "-k", "says or planned or cost or single"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False, encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "100%" in done.stdout
