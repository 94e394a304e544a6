"""ToMe inside the vision tower: counts, sizes, equality of the language model's part."""

from __future__ import annotations

import pytest
import torch

from tests import tiny
from tests.counting import count_forward
from vtprune import methods
from vtprune.harness.cost import architecture_of, counter, shapes
from vtprune.harness.cost.ledger import prefill, prefill_full
from vtprune.methods.tome import ToMeInTower
from vtprune.models import prune
from vtprune.models.errors import PruningUnsupported
from vtprune.models.oracle import masked

OPTIONS = {"ratio": 0.5, "placement": "vision_encoder"}
FAMILIES = ("llava", "llava_next")


def run(family, kernel="sdpa", numbers=(0, 1), steps=5, **changes):
    model = tiny.model(family, kernel)
    feed = tiny.inputs(family, [tiny.prompt(family, i) for i in numbers])
    with prune(model, "tome", **{**OPTIONS, **changes}) as context:
        out = tiny.generate(model, dict(feed), steps=steps)
        return model, feed, out, context.take()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_the_language_model_sees_exactly_the_merged_tokens(family, kernel):
    model, feed, out, records = run(family, kernel)
    with masked(model, records):
        reference = tiny.generate(model, dict(feed), steps=5)
    assert torch.equal(out.sequences, reference.sequences)
    for mine, theirs in zip(out.logits, reference.logits, strict=True):
        assert (mine - theirs).abs().max() <= 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_both_kernels_and_any_batch_merge_alike(family):
    fused, eager = run(family)[3], run(family, "eager")[3]
    alone = run(family, numbers=(1,))[3][0]
    for one, other in zip(fused, eager, strict=True):
        assert [a.tolist() for _, a in one.stages] == [a.tolist() for _, a in other.stages]
    assert [a.tolist() for _, a in alone.stages] == [a.tolist() for _, a in fused[1].stages]


def test_every_crop_ends_with_the_planned_number_of_tokens():
    records = run("llava", steps=1)[3]
    assert [r.visual_per_layer[0] for r in records] == [32, 32]
    record = run("llava_next", numbers=(1,), steps=1)[3][0]
    per_crop = (tiny.CROP // tiny.PATCH) ** 2
    newlines = record.visual_tokens - sum(record.views)
    assert record.visual_per_layer[0] <= record.crops * per_crop // 2 + newlines


def test_a_merged_token_is_the_mean_over_all_it_stands_for():
    """Without the tower's own work between merges, sizes and sums must be conserved."""
    one = methods.build("tome", **OPTIONS).part("encoder")
    from vtprune.methods.ops import Merged

    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    place = torch.arange(64)
    state = Merged(x, torch.ones(64), place, place)
    for q in one.plan(4, 64):
        state = one.merge(state, state.features, q)
    assert len(state.features) == 32 and state.size.sum() == 64
    assert torch.allclose((state.features * state.size[:, None]).sum(0), x.sum(0), atol=1e-4)


def test_ratio_zero_leaves_the_tower_alone():
    model, feed, out, _ = run("llava", ratio=0.0)
    plain = tiny.generate(model, dict(feed), steps=5)
    assert all(torch.equal(a, b) for a, b in zip(out.logits, plain.logits, strict=True))


def test_attention_weighs_a_token_by_its_size(monkeypatch):
    """Leaving the weights out must change what comes out."""
    weighted = run("llava", steps=1)[2].logits[0]
    monkeypatch.setattr(torch.Tensor, "log", lambda self: torch.zeros_like(self))
    assert not torch.allclose(weighted, run("llava", steps=1)[2].logits[0], atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_the_ledger_counts_the_shorter_tower_as_torch_does(monkeypatch, family, kernel):
    model, matching = tiny.model(family, kernel), counter.Counter()
    inner = ToMeInTower.merge

    def counted(self, *args):
        with matching:
            return inner(self, *args)

    monkeypatch.setattr(ToMeInTower, "merge", counted)
    method = methods.build("tome", **OPTIONS)
    feed = tiny.inputs(family, [tiny.prompt(family, 0)])
    with prune(model, method) as context:
        stages = count_forward(model, feed)
        record = context.take()[0]
    arch = architecture_of(model.config)
    cost, full = prefill(arch, record, method), prefill_full(arch, record)
    assert matching.macs > 0 and cost.selection == matching.macs
    assert cost.vision == stages["vision"] - matching.macs < full.vision
    assert (cost.projector, cost.llm) == (stages["projector"], stages["llm"])
    assert record.merged and record.to_json()["merged"] == list(record.merged)


def test_a_plan_without_a_run_is_that_of_the_run():
    model, _, _, (record, _) = run("llava", steps=1)
    made = shapes.skeleton(model.config)
    layout = shapes.layout(made, shapes.encoder_inputs(made, (32, 32), {}))
    planned = shapes.record(made, [layout], 8, methods.build("tome", **OPTIONS))
    assert planned.merged == record.merged
    assert planned.visual_per_layer == record.visual_per_layer


def test_a_plan_that_cannot_be_met_says_what_can():
    with pytest.raises(methods.MethodError, match="leave 52 of 64 patches"):
        methods.build("tome", **OPTIONS, per_round=3).part("encoder").plan(4, 64)


def test_a_tower_without_this_placement_names_the_other():
    with (
        pytest.raises(PruningUnsupported, match="placement=projector"),
        prune(tiny.model("qwen2_vl"), "tome", **OPTIONS),
    ):
        pass
