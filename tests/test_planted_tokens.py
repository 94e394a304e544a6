"""Tokens planted to stand out by a method's own rule must survive a removal of 90 %."""

from __future__ import annotations

import pytest
import torch

from vtprune import methods
from vtprune.methods import LayerSignals, View

HOT = torch.tensor([3, 17, 40, 63])
N, KEEP = 64, 6


def uniform(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.1


@pytest.mark.parametrize("name", ["fastv", "seqprune", "pyramiddrop", "fitprune"])
def test_attended_tokens_survive_inside_the_language_model(name):
    received = uniform(N)
    received[HOT] = 5.0
    signals = LayerSignals(
        layer=1,
        n_layers=8,
        alive=torch.arange(N),
        n_visual=N,
        _signal=lambda wanted: received.expand(4, N) if wanted.endswith("row") else received,
    )
    cls = methods.get(name)
    kept = methods.build(name, **cls.example).checked_select(signals, KEEP).indices
    assert set(HOT.tolist()) <= set(kept.tolist())


@pytest.mark.parametrize("name", ["fastervlm", "vispruner", "holov", "foreground"])
def test_tokens_the_encoder_attends_to_survive_before_it(name):
    attention = uniform(N, 4)
    attention[HOT] = 50.0
    features = torch.randn(N, 16, generator=torch.Generator().manual_seed(1))
    view = View(
        "tile", features, torch.arange(N), (8, 8), ("a", 0, 0),
        lambda wanted: attention if "attention" in wanted else features,
    )  # fmt: skip
    picked = methods.build(name, ratio=0.9).select(view, 10)
    kept = picked.indices if isinstance(picked, methods.Selection) else picked
    assert set(HOT.tolist()) <= set(kept.tolist())


def test_long_vectors_survive_the_norm_alone():
    features = torch.randn(N, 16, generator=torch.Generator().manual_seed(1))
    features[HOT] *= 20
    view = View("image", features, torch.arange(N), (8, 8), ("a", 0, 0))
    kept = methods.build("l2norm", ratio=0.9).select(view, KEEP)
    assert set(HOT.tolist()) <= set(kept.tolist())
