"""The ledger against counters on real models, and conventions against published figures."""

from __future__ import annotations

import pytest
import torch

from tests import tiny
from vtprune.harness.cost import architecture_of, convert
from vtprune.harness.cost.counter import Counter
from vtprune.harness.cost.ledger import (
    Tokens,
    decode_step,
    decoder,
    kv_cache_bytes,
    prefill,
    prefill_full,
)
from vtprune.models import prune


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_unpruned_cost_of_a_pruned_sample_is_that_of_the_unpruned_run(family):
    model = tiny.model(family)
    feed = tiny.inputs(family, [tiny.prompt(family, 0)])
    arch, costs = architecture_of(model.config), {}
    for ratio in (0.0, 0.5):
        with prune(model, "random", ratio=ratio) as run, torch.no_grad():
            model(**feed)
            costs[ratio] = run.take()[0]
    full = prefill_full(arch, costs[0.5])
    assert full == prefill(arch, costs[0.0])
    assert prefill(arch, costs[0.5], None).total < full.total


#: operators fvcore leaves uncounted in a decoder: element-wise work, and the fused attention
UNCOUNTED = {
    "add", "cos", "cumsum", "diff", "le", "mean", "mul", "ne", "neg", "new_ones", "pow", "rsqrt",
    "scaled_dot_product_attention", "silu", "sin", "softmax", "sub", "where",
}  # fmt: skip


class _Hidden(torch.nn.Module):
    """A decoder in the form fvcore can trace: one tensor in, one out."""

    def __init__(self, decoder: torch.nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, embeds):
        return self.decoder(inputs_embeds=embeds, use_cache=False).last_hidden_state


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_fvcore_agrees_on_what_it_can_see_and_lists_what_it_cannot(family, kernel):
    from fvcore.nn import FlopCountAnalysis

    model, n = tiny.model(family, kernel), 40
    embeds = torch.randn(1, n, model.config.text_config.hidden_size)
    analysis = FlopCountAnalysis(_Hidden(model.model.language_model), embeds)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    seen = analysis.by_operator()
    arch = architecture_of(model.config)
    ours = decoder(arch, [n] * arch.text.layers)
    assert seen["linear"] == ours.llm_linear
    uncounted = {name.removeprefix("aten::") for name in analysis.unsupported_ops()}
    assert uncounted <= UNCOUNTED
    if kernel == "eager":
        assert seen["matmul"] == ours.llm_attention
    else:  # the fused kernel is not seen: what the convention `fvcore` leaves out as well
        assert "scaled_dot_product_attention" in uncounted and not seen.get("matmul")


def _llava15_7b():
    from transformers import LlavaConfig

    return LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
        },
        text_config={"model_type": "llama", "vocab_size": 32064},
    )


def _llava_next_8b():
    from transformers import LlavaNextConfig

    return LlavaNextConfig(
        vision_config=_llava15_7b().vision_config,
        text_config={
            "model_type": "llama",
            "vocab_size": 128320,
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
        },
    )


@pytest.mark.parametrize(
    ("convention", "published"), [("fastv", 2.99e12), ("sparsevlm", 3.82e12)]
)
def test_published_figures_of_llava15_7b_at_576_visual_tokens(convention, published):
    arch = architecture_of(_llava15_7b())
    tokens = Tokens(crops=1, text=0, visual=[576] * 32)
    assert convert(convention, arch, tokens) == pytest.approx(published, rel=0.002)


@pytest.mark.parametrize(("text", "published"), [(0, 7.63e12), (62, 8.48e12)])
def test_two_per_multiply_add_in_the_decoder_explains_the_larger_figures(text, published):
    """7.63: visual tokens alone; 8.48: with a usual prompt around them. No tower, no LM head."""
    arch = architecture_of(_llava15_7b())
    tokens = Tokens(crops=0, text=text, visual=[576] * 32)
    head = 2 * arch.text.width * arch.text.vocabulary
    assert convert("flops", arch, tokens) - head == pytest.approx(published, rel=0.002)


#: reduction of visual MACs by FitPrune's published recipes, percent -> fraction
RECIPES = {30: 0.279, 50: 0.497, 60: 0.597, 70: 0.697, 80: 0.797, 90: 0.897}


@pytest.mark.parametrize("percent", RECIPES)
def test_fitprunes_recipes_save_what_they_are_called_after(percent):
    from vtprune.methods.fitprune import published_recipes

    arch, left = architecture_of(_llava15_7b()), [576]
    for deleted in published_recipes()[percent]:
        left.append(left[-1] - deleted)
    pruned = Tokens(crops=0, text=0, visual=left[:-1], visual_after=left[-1])
    whole = Tokens(crops=0, text=0, visual=[576] * 32)
    saved = 1 - convert("fitprune", arch, pruned) / convert("fitprune", arch, whole)
    assert saved == pytest.approx(RECIPES[percent], abs=0.001)


def test_reference_macs_of_the_true_language_models():
    arch = architecture_of(_llava_next_8b())
    cost = decoder(arch, [2988] * 32, head_positions=2988)
    assert cost.llm_linear == pytest.approx(20.854e12, rel=1e-4)
    assert cost.llm_attention == pytest.approx(2.340e12, rel=1e-3)
    assert cost.lm_head == pytest.approx(1.570e12, rel=1e-3)
    small = decoder(architecture_of(_llava15_7b()), [636] * 32, head_positions=636)
    assert small.llm + small.lm_head == pytest.approx(4.308e12, rel=1e-3)


def test_the_papers_flops_column_follows_from_linear_layer_macs():
    """4:3 and 3:2 images in equal parts, 71 text tokens: the POPE curve of the paper."""
    arch = architecture_of(_llava_next_8b())

    def tera(ratio: float) -> float:
        total = 0
        for rows, cols in ((36, 48), (32, 48)):
            visual = sum(int((1 - ratio) * n + 1e-9) for n in (576, rows * cols)) + rows
            tokens = Tokens(crops=5, text=71, visual=[visual] * arch.text.layers)
            total += convert("paper_gprune", arch, tokens)
        return total / 2e12

    assert tera(0.0) == pytest.approx(18.3, rel=0.01)
    assert tera(0.7) == pytest.approx(6.69, rel=0.01)
    assert tera(0.9) == pytest.approx(3.37, rel=0.01)


def test_table_2_of_the_paper_from_a_mix_of_image_shapes():
    """65.5 % of the images 4:3, the others 3:2: 18.52 -> 6.76, a reduction of 63.50 %."""
    arch = architecture_of(_llava_next_8b())

    def tera(ratio: float) -> float:
        total = 0.0
        for share, rows in ((0.655, 36), (0.345, 32)):
            visual = sum(int((1 - ratio) * n + 1e-9) for n in (576, rows * 48)) + rows
            tokens = Tokens(crops=5, text=71, visual=[visual] * arch.text.layers)
            total += share * convert("paper_gprune", arch, tokens)
        return total / 1e12

    assert tera(0.0) == pytest.approx(18.52, abs=0.01)
    assert tera(0.7) == pytest.approx(6.76, abs=0.01)
    assert 1 - tera(0.7) / tera(0.0) == pytest.approx(0.6350, abs=0.0005)


def test_a_decode_step_counts_the_new_token_and_every_cached_key():
    model = tiny.model("llava", "eager")
    arch = architecture_of(model.config)
    ids = torch.tensor([[1, 5, 6, 7]])
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True).past_key_values
        counted = Counter()
        with counted:
            model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
    assert decode_step(arch, [4] * arch.text.layers).total == counted.macs


def test_kv_cache_bytes_equal_the_real_cache():
    model = tiny.model("llava")
    feed = tiny.inputs("llava", [tiny.prompt("llava", 0)])
    with prune(model, "fastv", ratio=0.5) as run, torch.no_grad():
        cache = model(**feed, use_cache=True).past_key_values
        record = run.take()[0]
    real = sum(t.numel() * 4 for layer in cache.layers for t in (layer.keys, layer.values))
    assert kv_cache_bytes(architecture_of(model.config), record, 4) == real


def test_an_unknown_convention_names_the_known_ones():
    with pytest.raises(ValueError, match="paper_gprune"):
        convert("gflops", architecture_of(_llava15_7b()), Tokens(1, 0, [1] * 32))
