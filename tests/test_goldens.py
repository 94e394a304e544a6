"""Every method keeps the tokens that its published implementation keeps.

``pytest tests/test_goldens.py [--goldens DIR]`` runs every file of every folder of DIR.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import golden_layers, golden_recipes, golden_tokens  # noqa: F401 (they register)
from tests.golden_tools import CHECKERS, Golden


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_path" not in metafunc.fixturenames:
        return
    root: Path = metafunc.config.getoption("--goldens")
    folders = sorted(p for p in root.glob("*") if p.is_dir() and not p.name.startswith((".", "_")))
    # A folder without cases stands for itself, so that it fails below instead of vanishing.
    paths = [p for folder in folders for p in sorted(folder.glob("*.npz")) or [folder]] or [root]
    ids = [str(p.relative_to(root)) for p in paths]
    metafunc.parametrize("golden_path", paths, ids=ids)


def test_golden(golden_path: Path) -> None:
    assert golden_path.is_file(), f"no golden cases in {golden_path}"
    folder = golden_path.parent.name
    assert folder in CHECKERS, (
        f"no checker for golden folder '{folder}'; write one in tests/golden_tokens.py or "
        f"tests/golden_layers.py "
        f"(there are: {', '.join(sorted(CHECKERS))})"
    )
    CHECKERS[folder](Golden(golden_path))
