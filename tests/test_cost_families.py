"""The ledger against torch's counter: every family, every method, stage by stage."""

from __future__ import annotations

import pytest
import torch

from tests import tiny
from tests.contract.test_contract import built
from tests.counting import count_forward
from vtprune import methods
from vtprune.harness.cost import architecture_of, counter
from vtprune.harness.cost.ledger import prefill
from vtprune.methods import LayerMethod, PruningMethod, TokenMethod, View, ops
from vtprune.models import prune

#: what is asked of methods that change the picture is in tests/contract/test_input_contract.py
METHODS = [name for name in methods.available() if methods.get(name).stage != "input"]
#: rows of these are formed ahead in blocks, how often depends on the picture
AHEAD = ("cdpruner", "dpp")
STAGES = ("vision", "projector", "selection", "llm", "lm_head")


def _counted(monkeypatch, family: str, kernel: str, method: PruningMethod, **changes):
    """What torch counts in one prefill, the selection counted apart, and the record of it."""
    model, selection = tiny.model(family, kernel), counter.Counter()
    # Methods that merge before the projector call it once more, for the merged tokens.
    again, inner_project = counter.Counter(), View.project

    def counted_projection(self, x):
        with again:
            return inner_project(self, x)

    monkeypatch.setattr(View, "project", counted_projection)
    for cls, name in ((TokenMethod, "keep"), (LayerMethod, "checked_select")):
        inner = getattr(cls, name)

        def counted(self, *args, inner=inner):
            with selection:
                return inner(self, *args)

        monkeypatch.setattr(cls, name, counted)
    feed = tiny.inputs(family, [tiny.prompt(family, 0)])
    with prune(model, method) as run:
        stages = count_forward(model, feed)
        record = run.take()[0]
    stages["projector"] -= again.macs
    # Signals are read, and tokens chosen, in hooks on the language model and its layers.
    stages["llm"] -= selection.macs
    stages["selection"] = selection.macs
    return stages, record


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize(
    ("name", "kernel"), [(name, "sdpa") for name in METHODS] + [("none", "eager")]
)
def test_the_ledger_equals_the_counter_in_every_stage(monkeypatch, name, family, kernel):
    method = methods.build("none") if name == "none" else built(name, family)
    counted, record = _counted(monkeypatch, family, kernel, method)
    cost = prefill(architecture_of(tiny.model(family).config), record, method).stages()
    for stage in STAGES:
        wanted = counted[stage]
        if stage == "selection":
            wanted = pytest.approx(wanted, rel=0.35 if name in AHEAD else 0.01)
        assert cost[stage] == wanted, f"{stage}: {cost[stage]} counted {counted[stage]}"


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_parts_that_follow_each_other_cost_what_is_left_for_them(monkeypatch, family):
    parts = [{"name": "gprune", "ratio": 0.4}, {"name": "divprune", "newline": "keep"},
             {"name": "fastv"}]  # fmt: skip
    method = methods.build("compose", parts=parts, ratio=0.7)
    counted, record = _counted(monkeypatch, family, "sdpa", method)
    cost = prefill(architecture_of(tiny.model(family).config), record, method).stages()
    assert cost["selection"] == pytest.approx(counted["selection"], rel=0.01)


@pytest.mark.parametrize("n", [500, 512, 1000, 2304])
def test_the_cosines_of_a_large_graph_cost_what_is_multiplied_out(n):
    counted = counter.Counter()
    with counted:
        ops.cosine_graph(torch.randn(n, 3))
    assert ops.cosine_pairs(n) * 3 == counted.macs
