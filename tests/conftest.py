"""Options shared by all tests."""

from __future__ import annotations

import os

# Before torch is imported: on small tensors a second thread only waits, the more so when several
# test processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--goldens",
        type=Path,
        default=Path(__file__).parent / "goldens",
        help="directory of golden vectors, one folder per method (default: tests/goldens)",
    )
    parser.addoption(
        "--method",
        action="append",
        default=[],
        help="run the contract tests for this method only: a name or package.module:Class",
    )
