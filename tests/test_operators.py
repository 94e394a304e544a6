"""What pruning costs a device besides its arithmetic: operators, and waits for their results.

A token that is decoded may cost 5 % more operators than without pruning, and no wait. Before the
language model two waits a picture are allowed, one a drop inside it. No GPU is needed to count.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import pytest
import torch

from tests import tiny
from tests.method_tools import built
from tests.operator_tools import OnDevice, Operators, on_device
from vtprune import methods
from vtprune.methods import LayerMethod, Selection, TokenMethod
from vtprune.models import SampleRecord, prune

INSIDE = ("fastv", "pyramiddrop", "sparsevlm", "fitprune", "vtw", "dart", "compose")
BEFORE = ("random", "l2norm", "gprune", "vispruner", "visionzip")


@dataclass(frozen=True, kw_only=True)
class First(TokenMethod):
    """Keeps the first half of every picture; checks nothing, so that only the runtime waits."""

    def keep(self, image):
        return Selection(torch.arange(len(image.layout) // 2, device=image.features.device))


@dataclass(frozen=True, kw_only=True)
class Halves(LayerMethod):
    """Keeps the first half of the tokens alive, at layers 2 and 4; checks nothing."""

    needs = ()

    def schedule(self, n_layers, n_visual):
        return (n_visual,) * 2 + (n_visual // 2,) * 2 + (n_visual // 4,) * (n_layers - 4)

    def checked_select(self, signals, k):
        return Selection(torch.arange(k, device=signals.alive.device))


class Asked:
    """One prefill and three tokens, by hand: the library's own loop adds waits of its own."""

    def __init__(self, rows: int, family: str = "llava", kernel: str = "sdpa", method=None) -> None:
        self.model = tiny.model(family, kernel)
        feed = tiny.inputs(family, [tiny.prompt(family, i) for i in range(rows)])
        self.mask = feed["attention_mask"]
        self.padded = not bool(self.mask.all())
        if not self.padded:
            feed.pop("attention_mask")
        self.feed, self.method = feed, method

    def _context(self):
        return contextlib.nullcontext() if self.method is None else prune(self.model, self.method)

    def _step(self, number: int) -> dict[str, torch.Tensor]:
        rows = len(self.mask)
        mask = torch.cat([self.mask, self.mask.new_ones(rows, number)], dim=1)
        return {
            "input_ids": torch.full((rows, 1), 30),
            "position_ids": self.mask.sum(1, keepdim=True) - 1 + number,
            **({"attention_mask": mask} if self.padded else {}),
        }

    def operators(self) -> list[int]:
        """Of the prefill, and of every token."""
        counts, past = [], None
        with self._context(), torch.no_grad():
            for number in range(4):
                feed = self._step(number) if number else self.feed
                with Operators() as counter:
                    past = self.model(**feed, past_key_values=past, use_cache=True).past_key_values
                counts.append(counter.total)
        return counts

    def waits(self) -> list[int]:
        counts, past = [], None
        with self._context(), torch.no_grad():
            for number in range(4):
                feed = on_device(self._step(number) if number else self.feed)
                OnDevice.waits.clear()
                past = self.model(**feed, past_key_values=past, use_cache=True).past_key_values
                counts.append(OnDevice.waits.total())
        return counts


def build(name):
    return methods.build(name, **methods.get(name).example)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("rows", [1, 2], ids=["single", "ragged"])
@pytest.mark.parametrize("name", [*INSIDE, *BEFORE])
def test_a_decoded_token_costs_at_most_five_percent_more_operators(name, rows, kernel):
    plain = Asked(rows, kernel=kernel).operators()[1:]
    pruned = Asked(rows, kernel=kernel, method=build(name)).operators()[1:]
    for mine, bare in zip(pruned, plain, strict=True):
        assert mine <= 1.05 * bare, f"{mine} operators, {bare} without pruning"


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("rows", [1, 2], ids=["single", "ragged"])
@pytest.mark.parametrize("name", [*INSIDE, *BEFORE])
def test_a_decoded_token_waits_for_nothing_more_than_without_pruning(name, rows, family):
    method = built(name, family)
    plain = Asked(rows, family).waits()[1:]
    pruned = Asked(rows, family, method=method).waits()[1:]
    assert all(mine <= bare for mine, bare in zip(pruned, plain, strict=True)), (pruned, plain)


@pytest.mark.parametrize("rows", [1, 2], ids=["single", "ragged"])
def test_the_runtime_waits_once_a_prefill_and_for_no_drop(rows):
    plain = Asked(rows).waits()[0]
    before = Asked(rows, method=First(ratio=0.5)).waits()[0]
    assert before <= plain + 1, "ids and mask come to the host together, once"
    inside = Asked(rows, method=Halves(ratio=0.5)).waits()[0]
    assert inside <= plain + 1


def test_records_come_to_the_host_when_they_are_read(monkeypatch):
    settled, inner = [], SampleRecord.settle
    monkeypatch.setattr(SampleRecord, "settle", lambda self: (settled.append(1), inner(self))[1])
    asked = Asked(1)
    with prune(asked.model, "sparsevlm", **methods.get("sparsevlm").example) as run:
        with torch.no_grad():
            asked.model(**asked.feed, use_cache=True)
        assert not settled
        assert run.records[0].rewrites and settled


def test_the_counters_see_what_they_are_for():
    x = torch.arange(4).as_subclass(OnDevice)
    OnDevice.waits.clear()
    for wait in (
        lambda: x.sum().item(), lambda: bool((x > 2).all()), lambda: x.nonzero(),
        lambda: x[x > 2], lambda: x.cpu(), lambda: x.tolist(), lambda: x.unique(),
    ):  # fmt: skip
        before = OnDevice.waits.total()
        wait()
        assert OnDevice.waits.total() == before + 1
    before = OnDevice.waits.total()
    (x.cumsum(0) + x[[0, 1]].sum()).argsort()
    assert OnDevice.waits.total() == before
