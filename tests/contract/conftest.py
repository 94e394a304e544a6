"""Every contract test runs for every registered method, or for one given by ``--method``."""

from __future__ import annotations

import importlib

import pytest
import torch

from tests import tiny
from vtprune import methods


def _named(spec: str) -> str:
    """Register ``package.module:Class`` if it is not a name already; returns the name."""
    if ":" not in spec:
        return methods.get(spec).name
    module, _, attribute = spec.partition(":")
    cls = getattr(importlib.import_module(module), attribute)
    if cls.name == methods.PruningMethod.name:
        methods.register(attribute.lower())(cls)
    return cls.name


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "method" in metafunc.fixturenames:
        given = metafunc.config.getoption("--method")
        names = [_named(s) for s in given] if given else methods.available()
        dropping = [n for n in names if methods.get(n).stage not in ("none", "input")]
        metafunc.parametrize("method", dropping)
    if "input_method" in metafunc.fixturenames:
        given = metafunc.config.getoption("--method")
        names = [_named(s) for s in given] if given else methods.available()
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
