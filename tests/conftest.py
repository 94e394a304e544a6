"""Options shared by all tests."""

from __future__ import annotations

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
