"""Every contract test runs for every registered method, or for one given by ``--method``."""

from __future__ import annotations

import pytest
import torch

from tests import tiny
from tests.method_tools import chosen
from vtprune import methods


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "method" in metafunc.fixturenames:
        names = chosen(metafunc.config)
        dropping = [n for n in names if methods.get(n).stage not in ("none", "input")]
        metafunc.parametrize("method", dropping)
    if "input_method" in metafunc.fixturenames:
        names = chosen(metafunc.config)
        changing = [n for n in names if methods.get(n).stage == "input"]
        metafunc.parametrize("input_method", changing)
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", tiny.FAMILIES)
    if "kernel" in metafunc.fixturenames:
        metafunc.parametrize("kernel", ("sdpa", "eager", "segmented"))


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors are faster on one thread, and leave the other core to other workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
