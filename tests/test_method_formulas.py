"""Forms of methods that no published code has: held against the formula, worked out by itself."""

from __future__ import annotations

import pytest
import torch

from tests.golden_tokens import check_spread
from tests.golden_tools import removal, single_view
from vtprune.methods import Selection, build

N = 60


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def indices(picked: torch.Tensor | Selection) -> list[int]:
    found = picked.indices if isinstance(picked, Selection) else picked
    return sorted(found.tolist())


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_the_paper_form_of_holov_adds_how_similarities_vary_to_attention(tau):
    """Within a part: variance of a token's cosines, scaled to the part's attention, plus that."""
    x, attention, parts, k = drawn(N, 16).double(), drawn(N, seed=1).exp().double(), 4, 16
    x[:15] += 2 * x[:1]  # one part much more alike than others
    scores = []
    for part, a in zip(x.chunk(parts), attention.chunk(parts), strict=True):
        unit = part / part.norm(dim=1, keepdim=True)
        variance = ((unit @ unit.T) - (unit @ unit.T).mean(1, keepdim=True)).square().mean(1)
        scores.append(a + variance * a.mean() / variance.mean())
    worth = torch.stack([score.mean() for score in scores]) ** tau
    quota = (worth / worth.sum() * k).floor().long()
    for part in worth.argsort(descending=True)[: k - int(quota.sum())]:
        quota[part] += 1
    assert int(quota.max()) <= N // parts
    expected = [
        15 * p + int(i)
        for p, (score, count) in enumerate(zip(scores, quota.tolist(), strict=True))
        for i in score.argsort(descending=True)[:count]
    ]
    method = build("holov", ratio=removal(k, N), variant="paper", parts=parts, tau=tau)
    view = single_view(x.float(), cls_attention=attention.float()[:, None])
    assert indices(method.select(view, k)) == sorted(expected)
    plain = method.replace(variant="clean")
    assert indices(plain.select(view, k)) != sorted(expected), "no power"


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_prumerge_plus_spreads_what_attention_leaves(share):
    attention = drawn(3, N, seed=2).softmax(-1)
    method = build("prumerge_plus", ratio=0.5, attended_share=share)
    check_spread(method, attention, 24)


def test_visionzip_divides_64_tokens_as_published():
    """54 by attention and 10 merged ones, none of them for CLS."""
    n, hidden = 576, drawn(576, 8, seed=3)
    attention, keys = drawn(n, seed=4).exp(), drawn(n, 8, seed=5)
    method = build("visionzip", ratio=removal(64, n))
    view = single_view(
        hidden, project=lambda x: x, vision_features=hidden, vision_keys=keys,
        cls_attention=attention[:, None],
    )  # fmt: skip
    picked = method.select(view, 64)
    untouched = (picked.features == hidden[picked.indices]).all(1)
    assert int(untouched.sum()) == 54
    attended = attention.argsort(descending=True)[:54]
    assert sorted(picked.indices[untouched].tolist()) == sorted(attended.tolist())
