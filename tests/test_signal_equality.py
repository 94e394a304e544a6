"""Every signal of every family is what the unmodified eager model itself computes.

Masking equivalence and counts hold for any selection, so they do not see a signal that is taken
from the wrong heads, layer, patches or pictures. Here each signal is compared, value by value, with
:mod:`tests.unpruned`: attention the eager kernel returns, hidden states, projections, the keys and
values in the cache. Three kernels, a ragged batch, two pictures in a row, a video.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from tests import segmented, tiny
from tests.selection_tools import (
    LAYER_SIGNALS,
    NAMES,
    Batch,
    captured,
    layer_signals,
    replayed,
)
from vtprune import methods
from vtprune.models import prune, signals
from vtprune.models.families import family_of

KERNELS = ("sdpa", "eager", "segmented")
#: of values that go up to about 30
CLOSE = {"rtol": 1e-4, "atol": 2e-4}
#: said by the caller, or there only where a method merges: compared in tests of their own
ELSEWHERE = {"fg_mask", "clip_similarity", "merge_slots"}
PLAIN = sorted(set(signals.available("encoder")) - ELSEWHERE)
VIDEO = ("qwen2_vl", "qwen2_5_vl")


def encoder_names(family: str) -> list[str]:
    """All signals the family offers, those of one layer also at every layer."""
    adapter = family_of(tiny.model(family))
    names = []
    for name in PLAIN:
        if name not in adapter.offers:
            continue
        layered = signals.available("encoder")[name].hears in ("attention", "states")
        depth = len(adapter.vision_layers()) if layered else 0
        names += [name, *(f"{name}@{number}" for number in range(depth))]
    return names


@dataclass(frozen=True, kw_only=True)
class EncoderSpy(methods.TokenMethod):
    """Notes the signals of every picture, per encoder token."""

    reads: tuple[str, ...] = ()
    seen: list = field(default_factory=list)

    @property
    def needs(self) -> tuple[str, ...]:
        return self.reads

    def keep(self, image):
        self.seen.append({name: image.signal(name) for name in self.reads})
        return super().keep(image)

    def score(self, view):
        return view.features.norm(dim=1)


@dataclass(frozen=True, kw_only=True)
class LayerSpy(methods.LayerMethod):
    """Notes the signals of every row in front of the layers 3 and 5, and drops some tokens."""

    seen: list = field(default_factory=list)

    needs = LAYER_SIGNALS

    def schedule(self, n_layers: int, n_visual: int) -> tuple[int, ...]:
        return tuple(n_visual * (4 - (n >= 3) - (n >= 5)) // 4 for n in range(n_layers))

    def score(self, given: methods.LayerSignals) -> Tensor:
        self.seen.append((given, {name: given.signal(name) for name in LAYER_SIGNALS}))
        return (given.alive * 7919 % 101).float()  # neither first nor last tokens


def run(batch: Batch, spy: methods.PruningMethod) -> list:
    """Records of the product's run with a spy in it."""
    made, model = captured(batch), tiny.model(batch.family, batch.kernel)
    with prune(model, spy) as context, torch.no_grad():
        context.begin(list(NAMES[: len(made.prompts)]))
        model(**made.feed)
        return context.take()


BATCHES = [Batch(family, kernel) for family in tiny.FAMILIES for kernel in KERNELS]
BATCHES += [Batch(family, kernel, video=True) for family in VIDEO for kernel in KERNELS]


def label(batch: Batch) -> str:
    return f"{batch.family}-{batch.kernel}{'-video' if batch.video else ''}"


def check_encoder(batch: Batch, names: list[str]) -> None:
    spy = EncoderSpy(ratio=0.5, reads=tuple(names))
    run(batch, spy)
    pictures = [picture for row in captured(batch).pictures for picture in row]
    assert len(spy.seen) == len(pictures)
    for number, (found, picture) in enumerate(zip(spy.seen, pictures, strict=True)):
        for name in names:
            torch.testing.assert_close(
                found[name], picture.encoder[name], **CLOSE,
                msg=lambda text, where=f"{name}, picture {number}": f"{where}: {text}",
            )  # fmt: skip


@pytest.mark.parametrize("batch", BATCHES, ids=label)
def test_what_a_method_reads_of_the_encoder_is_what_the_eager_encoder_computes(batch):
    before = segmented.calls
    check_encoder(batch, encoder_names(batch.family))
    if batch.kernel == "segmented" and batch.family in tiny.M_ROPE:
        assert segmented.calls > before, "no call held several segments: the test has no power"


def check_layers(batch: Batch, positions: str) -> None:
    spy = LayerSpy(ratio=0.4, positions=positions)
    records, made, depth = run(batch, spy), {}, 8
    made[0] = replayed(batch, records, depth)
    for layer in (3, 5):  # attention of the layer itself, before it drops anything
        made[layer] = replayed(batch, records, layer)
    rows = [(layer, row) for layer in (3, 5) for row in range(len(records))]
    for (layer, row), (given, found) in zip(rows, spy.seen, strict=True):
        record = records[row]
        alive = record.alive(layer - 1)
        visual = torch.nonzero(captured(batch).visual[row]).squeeze(1)
        gone = torch.zeros(captured(batch).visual.shape[1], dtype=torch.bool)
        gone[visual[~alive]] = True
        ranks = torch.nonzero(alive).squeeze(1)
        assert given.layer == layer - 1 and given.alive.tolist() == ranks.tolist()
        for name in LAYER_SIGNALS:
            source = made[layer if name == "next_row" else 0]
            wanted = layer_signals(
                batch, source, row, layer, ranks, torch.arange(len(visual)),
                gone if positions == "compact" else None,
            ).signal(name)  # fmt: skip
            torch.testing.assert_close(
                found[name], wanted, **CLOSE, check_dtype=name != "text_distance",
                msg=lambda text, where=f"{name}, row {row}, layer {layer}": f"{where}: {text}",
            )  # fmt: skip


@pytest.mark.parametrize("batch", BATCHES, ids=label)
def test_what_a_method_reads_in_the_language_model_is_what_the_eager_model_computes(batch):
    check_layers(batch, "original")


@pytest.mark.parametrize("family", [f for f in tiny.FAMILIES if f not in tiny.M_ROPE])
def test_signals_follow_renumbered_positions(family):
    check_layers(Batch(family), "compact")


def test_every_registered_signal_is_compared_by_some_test():
    """A signal that is added needs an oracle: this fails until it has one."""
    read = {name.partition("@")[0] for f in tiny.FAMILIES for name in encoder_names(f)}
    assert read | ELSEWHERE == set(signals.available("encoder"))
    assert set(LAYER_SIGNALS) == set(signals.available("language"))
    for family in tiny.FAMILIES:
        assert set(encoder_names(family)) <= set(captured(family).pictures[0][0].encoder)


def test_the_signals_differ_enough_for_a_mistake_to_show():
    """Layers, heads and pictures: taking one for the other is far outside of the tolerance."""
    for family in tiny.FAMILIES:
        for row in captured(family).pictures:
            own = row[0].encoder
            for name in ("received_attention", "vision_keys", "encoder_states"):
                gap = (own[f"{name}@0"] - own[f"{name}@1"]).abs().max()
                assert gap > 10 * CLOSE["atol"], f"{family}: {name}"
