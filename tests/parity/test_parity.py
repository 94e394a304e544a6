"""The unpruned cell equals the engines' own clients, row by row; see :mod:`tests.parity`."""

from __future__ import annotations

import importlib.util

import pytest

from tests.parity import compare
from tests.parity.comparisons import ALL, ASPECTS

INPUTS = tuple(aspect for aspect in ASPECTS if aspect not in ("tokens", "answers"))

pytestmark = pytest.mark.slow  # whole models of two engines; two processes that import them


# One test an engine: everything in it shares one stock process.
@pytest.mark.parametrize("engine", ["lmms_eval", "vlmevalkit"])
def test_a_cell_equals_the_stock_client_but_for_the_differences_that_are_listed(engine, tmp_path):
    if engine == "vlmevalkit" and not importlib.util.find_spec("vlmeval"):
        pytest.skip("ms-vlmeval is not installed")
    chosen = [one for one in ALL if one.engine == engine]
    suite = compare.Suite(tmp_path, chosen)
    suite.run(engine)
    wrong = []
    for one in chosen:
        counted = suite.count(one)
        found = {aspect: counted.equal[aspect] for aspect in INPUTS}
        wanted = {aspect: one.differs.get(aspect, counted.rows) for aspect in INPUTS}
        if found != wanted or counted.broken:
            wrong += [f"{one.name}: equal {found}, expected {wanted}",
                      *counted.broken, *counted.details[:8]]  # fmt: skip
    assert not wrong, "\n".join(wrong)
