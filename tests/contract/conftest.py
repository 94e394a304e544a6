"""Every contract test runs for every registered method, or for one given by ``--method``."""

from __future__ import annotations

import pytest

from tests import tiny
from tests.method_tools import chosen
from vtprune import methods


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "method" in metafunc.fixturenames:
        names = chosen(metafunc.config)
        dropping = [n for n in names if methods.get(n).stage not in ("none", "input")]
        # One worker for all tests of a method: they read runs that it has made already.
        grouped = [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in dropping]
        metafunc.parametrize("method", grouped)
    if "input_method" in metafunc.fixturenames:
        names = chosen(metafunc.config)
        changing = [n for n in names if methods.get(n).stage == "input"]
        metafunc.parametrize("input_method", changing)
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", tiny.FAMILIES)
    if "kernel" in metafunc.fixturenames:
        metafunc.parametrize("kernel", ("sdpa", "eager", "segmented"))
