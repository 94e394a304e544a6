"""What must hold for the methods whatever the input: closed forms, symmetries, counts, bounds."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.golden_tools import crops_layout, packed_image, single_view
from vtprune import methods
from vtprune.methods import LayerSignals, MethodError, SelectionShape, build, n_keep, ops
from vtprune.methods.diverse import (
    drop_duplicates,
    farthest_points,
    greedy_dpp,
    important_and_diverse,
)
from vtprune.methods.fastv import FastV
from vtprune.methods.fitprune import FitPrune, published_recipes
from vtprune.methods.fitprune_search import Costs, OfflineReplay, removable, search_recipe
from vtprune.methods.foreground import attention_foreground
from vtprune.methods.gprune import GPrune, propagate, token_graph
from vtprune.methods.holov import capped, quotas
from vtprune.methods.merging import merge_rounds, merge_tokens, split_budget
from vtprune.methods.pool import pool_cells
from vtprune.methods.schedules import fit_to_mean, survival
from vtprune.methods.seqprune import SequentialPrune

seeds = st.integers(0, 10_000)


def clustered(n: int, d: int, seed: int, clusters: int = 4, spread: float = 0.6) -> Tensor:
    """Tokens ``[n, d]`` around a few directions, with norms that vary; float64."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(clusters, d, generator=generator, dtype=torch.float64)
    x = centre[torch.randint(clusters, (n,), generator=generator)]
    x = x + spread * torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x * torch.exp(0.5 * torch.randn(n, 1, generator=generator, dtype=torch.float64))


def image_of(n_base: int = 36, canvas: tuple[int, int] = (6, 8), d: int = 16, seed: int = 0, **kw):
    side = math.isqrt(n_base)
    n = n_base + canvas[0] * (canvas[1] + 1)
    return packed_image(clustered(n, d, seed).float(), base=(side, side), canvas=canvas, **kw)


# --- counts -------------------------------------------------------------------------------------


def test_counts_do_not_lose_a_token_to_binary_fractions():
    assert n_keep(250, 0.9) == 25
    assert n_keep(250, 0.9, "int_raw") == 24
    assert n_keep(576, 0.9, "round_half_even") == 58
    assert n_keep(5, 0.99) == 1
    assert n_keep(0, 0.5) == 0


def test_top_k_breaks_ties_by_position():
    assert ops.top_k(torch.zeros(100), 7).tolist() == list(range(7))


# --- G-Prune ------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(seed=seeds, t=st.integers(0, 20), masked=st.booleans(), threshold=st.floats(-0.5, 0.95))
def test_propagation_conserves_mass(seed, t, masked, threshold):
    x = clustered(40, 8, seed)
    graph = token_graph(x, threshold=threshold, mask_nonedges=masked)
    w = x.norm(dim=1)
    torch.testing.assert_close(propagate(graph, w, t).sum(), w.sum(), rtol=1e-9, atol=0)


@settings(max_examples=10, deadline=None)
@given(seed=seeds, t=st.integers(1, 7), edge=st.sampled_from(["clip", "shift"]))
def test_vector_form_equals_the_power_of_the_softmax_matrix(seed, t, edge):
    x, threshold, temperature = clustered(30, 8, seed), 0.4, 0.05
    cosine = ops.cosine_graph(x).fill_diagonal_(1)
    logits = (cosine if edge == "clip" else cosine - threshold) / temperature
    edges = cosine >= threshold
    a = logits.masked_fill(~edges, -torch.inf).softmax(-1)
    graph = token_graph(x, threshold=threshold, temperature=temperature, edge=edge)
    w = x.norm(dim=1)
    power = w @ torch.linalg.matrix_power(a, t)
    torch.testing.assert_close(propagate(graph, w, t), power, rtol=1e-9, atol=1e-12)
    assert torch.equal(graph.degree, edges.sum(1))


@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_many_iterations_reach_the_stationary_distribution_of_each_component(seed):
    x = clustered(24, 12, seed, spread=0.3)
    graph = token_graph(x, threshold=0.8, temperature=1.0)
    w = x.norm(dim=1)
    reach = graph.weights > 0
    for _ in range(5):
        reach = (reach.double() @ reach.double()) > 0
    reach = reach.double()
    expected = (reach @ w) * graph.row_sum / (reach @ graph.row_sum)
    torch.testing.assert_close(propagate(graph, w, 50_000), expected, rtol=1e-6, atol=0)


@settings(max_examples=10, deadline=None)
@given(seed=seeds, scale=st.sampled_from([0.01, 0.5, 3.0, 100.0]))
def test_gprune_ignores_scale_and_follows_permutations(seed, scale):
    method = GPrune(ratio=0.6)
    x = clustered(50, 8, seed)
    kept = set(method.select(single_view(x), 20).tolist())
    assert set(method.select(single_view(x * scale), 20).tolist()) == kept
    shuffle = torch.randperm(50, generator=torch.Generator().manual_seed(seed))
    turned = method.select(single_view(x[shuffle]), 20)
    assert set(shuffle[turned].tolist()) == kept


def test_gprune_without_edges_or_without_steps():
    x = clustered(40, 16, 1)
    view = single_view(x)
    cosine = ops.cosine_graph(x).fill_diagonal_(-1)
    method = GPrune(ratio=0.5, threshold=min(1.0, float(cosine.max()) + 1e-6))
    norms = build("l2norm", ratio=0.5).select(view, 20)
    assert torch.equal(method.select(view, 20), norms)
    still = GPrune(ratio=0.5, iterations=0)
    torch.testing.assert_close(still.score(view), x.norm(dim=1) / still.graph(x).degree)


def test_gprune_on_a_uniform_graph_is_a_tie():
    x = clustered(30, 8, 1)
    method = GPrune(ratio=0.5, threshold=-1.0, temperature=1e9)
    score = method.score(single_view(x))
    torch.testing.assert_close(score, score.mean().expand(30), rtol=1e-6, atol=0)


def test_a_token_of_norm_zero_is_isolated():
    x = clustered(20, 8, 3)
    x[5] = 0
    for options in ({}, {"mask_nonedges": False}, {"threshold": -1.0}):
        graph = token_graph(x, **options)
        assert graph.degree[5] == 1 and graph.weights[5].sum() == 1
        assert graph.weights[:, 5].sum() == 1
        assert torch.isfinite(propagate(graph, x.norm(dim=1), 5)).all()


def test_shift_and_clip_are_one_chain_when_non_edges_are_masked():
    x = clustered(40, 8, 4)
    clip, shift = token_graph(x, edge="clip"), token_graph(x, edge="shift")
    ratio = (clip.weights / clip.row_sum[:, None]) - (shift.weights / shift.row_sum[:, None])
    assert ratio.abs().max() < 1e-12
    unmasked = [
        token_graph(x, edge=e, mask_nonedges=False, temperature=1.0) for e in ("clip", "shift")
    ]
    rows = [g.weights / g.row_sum[:, None] for g in unmasked]
    assert (rows[0] - rows[1]).abs().max() > 1e-3


def test_variants_of_gprune_fix_their_options():
    x = clustered(40, 8, 5)
    literal = GPrune(ratio=0.5, variant="paper_literal").graph(x)
    by_hand = GPrune(ratio=0.5, temperature=1.0, mask_nonedges=False).graph(x)
    assert torch.equal(literal.weights, by_hand.weights)
    floor = GPrune(ratio=0.5, variant="released_fp16").graph(x)
    by_hand = GPrune(ratio=0.5, degree_floor=2.0**-25).graph(x)
    assert torch.equal(floor.degree, by_hand.degree)
    assert (floor.degree <= GPrune(ratio=0.5).graph(x).degree).all()
    with pytest.raises(MethodError, match="temperature"):
        GPrune(ratio=0.5, variant="paper_literal", temperature=0.1)


def test_no_edge_crosses_views_and_newlines_stay():
    image = image_of()
    together = GPrune(ratio=0.5).keep(image).indices
    base = image.layout.view == 0
    alone = packed_image(image.features[base], base=(6, 6))
    kept = GPrune(ratio=0.5).keep(alone).indices
    assert together[together < 36].tolist() == kept.tolist()
    newline = torch.nonzero(image.layout.newline).squeeze(1)
    assert set(newline.tolist()) <= set(together.tolist())
    joint = GPrune(ratio=0.5, scope="joint").keep(image).indices
    assert len(joint) == n_keep(36 + 48, 0.5) + len(newline)
    rivals = GPrune(ratio=0.5, newline="candidate").keep(image).indices
    assert len(rivals) == 18 + n_keep(54, 0.5)


# --- random, foreground -------------------------------------------------------------------------


def test_random_draws_per_view_and_from_names_alone():
    image = image_of()
    method = build("random", ratio=0.7, seed=3)
    kept = method.keep(image).indices
    newline = image.layout.newline[kept]
    view = image.layout.view[kept][~newline]
    assert (view == 0).sum() == n_keep(36, 0.7) and (view == 1).sum() == n_keep(48, 0.7)
    torch.manual_seed(99)
    torch.rand(5)
    assert torch.equal(method.keep(image).indices, kept)
    assert not torch.equal(method.replace(seed=4).keep(image).indices, kept)
    other = image_of(key=("another sample", 0))
    assert not torch.equal(method.keep(other).indices, kept)


def test_random_is_uniform():
    view = single_view(torch.zeros(20, 2))
    hits = torch.zeros(20)
    for seed in range(400):
        hits[build("random", ratio=0.5, seed=seed).select(view, 10)] += 1
    assert hits.min() > 150 and hits.max() < 250


@pytest.mark.parametrize(("name", "first"), [("foreground", True), ("background", False)])
def test_the_preserved_class_goes_last(name, first):
    mask = torch.zeros(40, dtype=torch.bool)
    mask[::4] = True
    view = single_view(torch.zeros(40, 2), fg_mask=mask if first else ~mask)
    method = build(name, ratio=0.5, provider="annotation")
    assert method.needs == ("fg_mask",)
    kept = method.select(view, 25)
    assert set(torch.nonzero(mask).flatten().tolist()) <= set(kept.tolist())
    assert set(method.select(view, 6).tolist()) <= set(torch.nonzero(mask).flatten().tolist())


def test_attended_foreground_is_the_smallest_set_with_the_mass():
    attention = torch.tensor([0.1, 0.3, 0.05, 0.25, 0.3])
    assert attention_foreground(attention, 0.5).tolist() == [False, True, False, False, True]
    assert attention_foreground(attention, 0.65).tolist() == [False, True, False, True, True]
    view = single_view(torch.zeros(5, 2), cls_attention=attention[:, None].repeat(1, 3))
    method = build("foreground", ratio=0.5, provider="cls_attention")
    assert sorted(method.select(view, 2).tolist()) == [1, 4]


# --- layer methods ------------------------------------------------------------------------------


def mean_removal(plan: tuple[int, ...], n_visual: int) -> float:
    return 1 - sum(plan) / len(plan) / n_visual


@pytest.mark.parametrize("n_layers", [8, 28, 32])
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fastv", {"K": 1}),
        ("fastv", {"K": 2}),
        ("seqprune", {"K": 1, "step": 0.5}),
        ("seqprune", {"K": 2, "step": 0.1}),
        ("fitprune", {}),
        ("fitprune", {"recipe": (0.2, 0.3, 0.1, 0.05)}),
        ("dart", {}),
        ("pyramiddrop", {}),
        ("sparsevlm", {}),
        ("sparsevlm_plus", {}),
    ],
)
def test_schedules_remove_the_ratio_on_average(name, options, ratio, n_layers):
    method = build(name, ratio=ratio, **options)
    if ratio > method.max_mean_ratio(n_layers):
        with pytest.raises(MethodError, match="at most"):
            method.checked_schedule(n_layers, 576)
        return
    plan = method.checked_schedule(n_layers, 576)
    assert abs(mean_removal(plan, 576) - ratio) <= 1 / 576


@settings(max_examples=60, deadline=None)
@given(
    ratio=st.floats(0.01, 0.99),
    k=st.integers(1, 6),
    step=st.floats(0.03, 1.0),
    n_layers=st.integers(4, 40),
)
def test_seqprune_meets_any_mean_up_to_its_bound_and_none_above(ratio, k, step, n_layers):
    method = SequentialPrune(ratio=ratio, K=k, step=step)
    if k >= n_layers or ratio > method.max_mean_ratio(n_layers):
        with pytest.raises(MethodError):
            method.checked_schedule(n_layers, 576)
    else:
        plan = method.checked_schedule(n_layers, 576)
        assert abs(mean_removal(plan, 576) - ratio) <= 1 / 576


def test_published_conversions_between_local_and_mean():
    fast = FastV(ratio=0.9).schedule(32, 100_000)
    assert 1 - fast[-1] / 100_000 == pytest.approx(0.960, abs=2e-3)
    for ratio, removed in ((0.5, 0.577), (0.7, 0.853)):
        last = SequentialPrune(ratio=ratio).schedule(32, 100_000)[-1]
        assert 1 - last / 100_000 == pytest.approx(removed, abs=2e-3)
    assert SequentialPrune().max_mean_ratio(32) == pytest.approx(0.799, abs=2e-3)
    assert SequentialPrune().max_mean_ratio(28) == pytest.approx(0.771, abs=2e-3)
    assert SequentialPrune(step=0.3).max_mean_ratio(32) == pytest.approx(0.903, abs=2e-3)


@pytest.mark.parametrize(
    ("method", "n_layers", "says"),
    [
        (FastV(ratio=0.97), 32, "at most 0.938"),
        (FastV(ratio=0.9, K=3), 28, "at most 0.893"),
        (FastV(ratio=0.5, K=8), 8, "below the 8 layers"),
        (SequentialPrune(ratio=0.9), 32, "at most 0.799"),
        (SequentialPrune(ratio=0.9, ratio_mode="local"), 8, "do not fit"),
        (SequentialPrune(ratio=0.05, ratio_mode="mean", strict_schedule=True), 32, "smallest"),
        (FitPrune(ratio=0.98), 32, "at most 0.969"),
        (FitPrune(ratio=0.33, ratio_mode="local"), 32, "no published recipe"),
        (FitPrune(ratio=0.5, recipe="calibrated"), 32, "not resolved"),
        (FitPrune(ratio=0.5, recipe_scaling="counts"), 28, "does not fit"),
    ],
)
def test_infeasible_ratios_name_their_bound(method, n_layers, says):
    with pytest.raises(MethodError, match=says) as error:
        method.checked_schedule(n_layers, 576)
    assert "\n" not in str(error.value)


def test_seqprune_below_one_step():
    one = SequentialPrune(ratio=0.05, ratio_mode="local")
    assert one.schedule(8, 100) == (100, 100, *[95] * 6)
    assert one.replace(strict_schedule=True).schedule(8, 100) == (100,) * 8
    assert SequentialPrune(ratio=0.5, ratio_mode="local").schedule(32, 576)[:8] == (
        576, 576, 518, 460, 403, 345, 288, 288,
    )  # fmt: skip


def test_layer_scores_average_heads_after_the_softmax():
    row = torch.tensor([[0.1, 0.6, 0.2], [0.5, 0.0, 0.2]])
    signals = LayerSignals(1, 8, torch.arange(3), 3, {"last_row": row}.__getitem__)
    for name in ("fastv", "seqprune"):
        score = build(name, ratio=0.5).score(signals)
        torch.testing.assert_close(score, torch.tensor([0.3, 0.3, 0.2]))
    assert FastV(ratio=0.5).checked_select(signals, 1).indices.tolist() == [0]


# --- FitPrune -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("percent", "left", "mean"), [(30, 312, 0.265), (90, 37, 0.874)])
def test_published_recipes(percent, left, mean):
    recipe = published_recipes()[percent]
    assert len(recipe) == 32 and 576 - sum(recipe) == left
    plan = FitPrune(ratio=percent / 100, ratio_mode="local").checked_schedule(32, 576)
    assert plan[1] == 576 - recipe[0] and plan[-1] == left + recipe[-1]
    assert mean_removal(plan, 576) == pytest.approx(mean, abs=2e-3)


def test_recipes_scale_to_other_depths_and_lengths():
    method = FitPrune(ratio=0.5, ratio_mode="local")
    plan, twice = method.schedule(32, 576), method.schedule(64, 5760)
    assert all(abs(twice[2 * i] / 10 - plan[i]) < 1 for i in range(32))
    assert survival([0.5, 0.25], 4) == [1.0, 0.75, 0.5, 0.375]
    same = FitPrune(ratio=0.5, ratio_mode="local", recipe=(0.25, 0.25, 0.1)).schedule(3, 100)
    assert same == (100, 75, 50)
    counts = FitPrune(ratio=0.5, ratio_mode="local", recipe=[30, 20, 10]).schedule(3, 100)
    assert counts == (100, 70, 50)


def test_a_blended_curve_lies_between_its_neighbours():
    low, high = [1.0, 0.5, 0.4], [1.0, 0.9, 0.8]
    blend = fit_to_mean([low, high], 0.25)
    assert sum(blend) == pytest.approx(2.25)
    assert all(a <= b <= c for a, b, c in zip(low, blend, high, strict=True))


def test_removable_tokens_are_the_smallest_and_leave_the_attention():
    v = torch.tensor([4.0, 1.0, 3.0, 2.0])
    assert removable(v, 10.0, 0.05).tolist() == [False] * 4
    # Without 1 and 2 seven remain, the first amount below 0.75 * 10; one fewer may go.
    assert removable(v, 10.0, 0.25).tolist() == [False, True, False, False]
    assert removable(v, 1.0, 0.5).sum() == 2  # never below: one less than all but one


@pytest.mark.parametrize("budget", ["visual_macs", "mean_tokens", "total_flops"])
def test_the_search_meets_its_budget_or_says_what_is_feasible(budget):
    generator = torch.Generator().manual_seed(0)
    cross, self_ = torch.rand(2, 6, 40, generator=generator)
    totals = [[(float(c.sum()), float(s.sum())) for c, s in zip(cross, self_, strict=True)]] * 2
    costs = Costs(6, 40, 32, 48, n_text=(10, 14), kv_width=16, budget=budget)

    def start():
        return [OfflineReplay(cross, self_) for _ in range(2)]

    result = search_recipe(start, totals, 0.4, costs)
    chosen = [t for t in result.trials if t.deletions == result.recipe and t.reached]
    assert chosen and all(t.reduction >= 0.4 for t in chosen)
    assert len(result.recipe) == 6 and sum(result.recipe) < 40
    with pytest.raises(MethodError, match=r"feasible range is \[0, 0\.\d+\]"):
        search_recipe(start, totals, 0.99, costs)


def test_mean_tokens_count_layers_not_macs():
    costs = Costs(4, 100, 8, 16, budget="mean_tokens")
    assert costs.layer(0, 100) == pytest.approx(100)
    assert costs.entering(0, 100) == pytest.approx(100 * 3 * 8 / (4 * 8 + 3 * 16))


# --- ToMe ---------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seed=seeds, n=st.integers(2, 60), share=st.floats(0.05, 1.0), per=st.sampled_from([None, 3]))
def test_merging_keeps_the_sum_and_every_token_once(seed, n, share, per):
    x = clustered(n, 6, seed)
    n_out = max(1, int(n * share))
    merged = merge_tokens(x, n_out, per_round=per)
    assert len(merged.features) == n_out == len(merged.representative)
    assert merged.size.sum() == n and merged.size.min() >= 1
    assert torch.equal(torch.bincount(merged.group, minlength=n_out).double(), merged.size)
    means = torch.zeros(n_out, 6, dtype=x.dtype).index_add_(0, merged.group, x)
    torch.testing.assert_close(merged.features, means / merged.size[:, None])
    assert torch.equal(merged.group[merged.representative], torch.arange(n_out))


def test_tome_rounds_and_orders():
    assert merge_rounds(576, 57) == [288, 144, 72, 15]
    assert merge_rounds(576, 172) == [288, 116]
    assert merge_rounds(10, 10) == []
    image = packed_image(clustered(36, 8, 2).float(), base=(6, 6))
    spatial = build("tome", ratio=0.5).keep(image)
    listed = build("tome", ratio=0.5, order="tome", positions="compact").keep(image)
    merged = merge_tokens(image.features, 18)
    assert torch.equal(listed.features, merged.features)
    assert torch.equal(spatial.indices, listed.indices)
    assert torch.equal(spatial.features, merged.features[merged.representative.argsort()])
    with pytest.raises(MethodError, match="compact"):
        build("tome", ratio=0.5, order="tome")
    with pytest.raises(MethodError, match="placement"):
        build("tome", ratio=0.5, placement="vision_encoder", metric="clip_keys")


def test_identical_tokens_merge_into_themselves():
    x = clustered(8, 6, 1).float().repeat_interleave(2, 0)
    merged = merge_tokens(x, 8)
    torch.testing.assert_close(merged.features[merged.group], x)


# --- VisPruner ----------------------------------------------------------------------------------


def test_vispruner_drops_the_duplicate_at_an_even_place():
    u = ops.unit(torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [-1.0, 0.0]]))
    similarity = (u @ u.T)[None]
    assert drop_duplicates(similarity, 3).tolist() == [[2, 1, 3]]
    assert drop_duplicates(similarity, 4).tolist() == [[0, 1, 2, 3]]
    assert drop_duplicates(similarity, 0).shape == (1, 0)


@settings(max_examples=15, deadline=None)
@given(seed=seeds, n=st.integers(4, 40), keep=st.integers(1, 39), share=st.floats(0, 1))
def test_vispruner_keeps_the_asked_number_in_every_crop(seed, n, keep, share):
    keep = min(keep, n)
    x = torch.stack([clustered(n, 6, seed), clustered(n, 6, seed + 1)])
    attention = x.norm(dim=-1)
    important, diverse = important_and_diverse(x, attention, keep, share)
    for row in torch.cat([important, diverse], dim=1):
        assert len(set(row.tolist())) == keep
    assert torch.equal(important, ops.top_k(attention, int(keep * share)))
    alone = important_and_diverse(x[1:], attention[1:], keep, share)
    assert torch.equal(alone[1][0], diverse[1])


def test_vispruner_treats_crops_apart_and_knows_its_presets():
    layout = crops_layout(3, 16)
    features = clustered(48, 8, 1).float()
    signals = {
        "vision_features": lambda: features.reshape(3, 16, 8),
        "cls_attention": lambda: features.norm(dim=-1).reshape(3, 16, 1),
        "tile_features": lambda: features.reshape(3, 16, 8),
    }
    image = methods.ImageTokens(features, layout, ("s", 0), signals)
    kept = build("vispruner", ratio=0.5).keep(image).indices
    assert torch.bincount(kept // 16).tolist() == [8, 8, 8]
    unpad = build("vispruner", ratio=0.5, anyres="unpad")
    assert (unpad.newline, unpad.padding) == ("keep", "drop")
    assert build("vispruner", **unpad.options()) == unpad
    assert "received_attention" in build("vispruner", score_source="received").needs


# --- later methods ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("sparsevlm", {192: 206.5, 128: 145.4, 96: 114.1, 64: 82.3}),
        ("sparsevlm_plus", {192: 206.8, 128: 144.1, 96: 113.9, 64: 81.8}),
        ("dart", {192: 212.3, 128: 152.3, 64: 92.3}),
        ("pyramiddrop", {270: 270.0}),
        ("vtw", {270: 270.0, 288: 288.0}),
    ],
)
def test_labels_of_published_tables_and_what_they_really_process(name, means):
    for label, mean in means.items():
        for mode in ("mean", "local"):
            method = build(name, ratio=0.5, ratio_mode=mode, nominal=label)
            plan = method.checked_schedule(32, 576)
            assert sum(plan) / 32 == pytest.approx(mean, abs=0.06)
        if name != "vtw":
            with pytest.raises(MethodError, match=f"nominal=65 is not one of .*{label}"):
                build(name, ratio=0.5, nominal=65)


def test_labels_stand_for_the_released_settings():
    def plan(name, label, depth):
        return build(name, ratio=0.5, nominal=label).checked_schedule(depth, 576)

    assert [plan("dart", label, 32)[2] for label in (192, 128, 64)] == [188, 124, 60]
    published = (576,) * 8 + (288,) * 8 + (144,) * 8 + (72,) * 8
    assert plan("pyramiddrop", 270, 32) == published
    withdrawn = [plan("vtw", *case).index(0) for case in ((270, 32), (288, 32), (288, 40))]
    assert withdrawn == [15, 16, 20]


def test_pyramiddrop_schedules():
    published = build("pyramiddrop", ratio=0.875, ratio_mode="local").checked_schedule(32, 576)
    assert published == (576,) * 8 + (288,) * 8 + (144,) * 8 + (72,) * 8
    low = build("pyramiddrop", ratio=8 / 9).checked_schedule(32, 576)
    assert [low.index(v) for v in sorted(set(low), reverse=True)] == [0, 1, 3, 4]
    assert 32 <= low[-1] <= 34


def test_vtw_withdraws_whole_layers():
    assert build("vtw", ratio=0.5).checked_schedule(32, 576) == (576,) * 16 + (0,) * 16
    assert build("vtw", ratio=0.5, ratio_mode="local", K=20).schedule(40, 10)[19:21] == (10, 0)
    with pytest.raises(MethodError, match=r"0\.031 to 0\.969"):
        build("vtw", ratio=0.999).checked_schedule(32, 576)


@settings(max_examples=15, deadline=None)
@given(seed=seeds, n=st.integers(2, 40), k=st.integers(1, 40))
def test_farthest_points_equal_the_minimum_over_all_picks(seed, n, k):
    k = min(n, k)
    distance = 1 - ops.cosine_graph(clustered(n, 5, seed))
    order, _ = farthest_points(distance, k)
    assert len(set(order.tolist())) == k
    for step in range(1, k):
        gaps = distance[order[:step]].amin(0)
        gaps[order[:step]] = -1
        assert gaps[order[step]] == gaps.max()


@settings(max_examples=10, deadline=None)
@given(seed=seeds, n=st.integers(3, 25), k=st.integers(1, 8))
def test_greedy_dpp_picks_the_largest_determinant(seed, n, k):
    k = min(n, k)
    x = clustered(n, 12, seed)
    relevance = torch.linspace(0.3, 1, n, dtype=x.dtype)
    order, gains = greedy_dpp(x[None], relevance[None], k)
    kernel = relevance[:, None] * relevance * ops.cosine_graph(x)
    chosen: list[int] = []
    for step in range(k):
        volumes = [
            -1.0 if i in chosen else float(torch.linalg.det(kernel[[*chosen, i]][:, [*chosen, i]]))
            for i in range(n)
        ]
        assert volumes[int(order[0, step])] == pytest.approx(max(volumes), rel=1e-6)
        chosen.append(int(order[0, step]))
    volume = float(torch.linalg.det(kernel[chosen][:, chosen]))
    assert float(gains.prod()) == pytest.approx(volume, rel=1e-6)


def test_a_dpp_goes_on_when_all_directions_are_taken():
    x = torch.eye(4).repeat(5, 1)
    order, _ = greedy_dpp(x[None], torch.ones(1, 20), 12)
    assert len(set(order[0].tolist())) == 12
    assert torch.bincount(order[0] % 4).tolist() == [3, 3, 3, 3]
    assert sorted((order[0, :4] % 4).tolist()) == [0, 1, 2, 3]


@settings(max_examples=30, deadline=None)
@given(
    weights=st.lists(st.floats(0.001, 10), min_size=1, max_size=12),
    size=st.integers(1, 9),
    share=st.floats(0.05, 1),
)
def test_part_quotas_sum_to_the_count_and_fit_their_parts(weights, size, share):
    shares = torch.tensor(weights, dtype=torch.float64)
    shares = shares / shares.sum()
    sizes = [size + (i % 2) for i in range(len(weights))]
    k = max(1, int(share * sum(sizes)))
    quota = quotas(shares, k)
    assert quota.sum() == k
    fitted = capped(quota, shares, sizes)
    assert fitted.sum() == k and (fitted <= torch.tensor(sizes)).all()


@pytest.mark.parametrize("variant", ["released", "clean", "paper"])
def test_holov_keeps_the_count_in_every_variant(variant):
    x = clustered(48, 8, 1).float()
    attention = torch.rand(1, 48, 1, generator=torch.Generator().manual_seed(1)) ** 8
    image = packed_image(x, base=(6, 8), cls_attention=attention)
    kept = build("holov", ratio=0.5, variant=variant).keep(image)
    assert len(kept.indices) == 24
    if variant == "released":
        zeros = int((kept.features == 0).all(dim=1).sum())
        assert zeros > 0 and len(torch.unique(kept.indices)) == 24
    else:
        assert kept.features is None


@pytest.mark.parametrize("name", ["visionzip", "prumerge", "prumerge_plus"])
def test_merging_before_the_projector(name):
    layout, d = crops_layout(2, 16), 8
    generator = torch.Generator().manual_seed(0)
    x, attention = torch.randn(2, 16, d, generator=generator), torch.rand(2, 16, 3)
    names = ("vision_features", "vision_keys", "last_keys", "tile_features")
    signals = {name: lambda: x for name in names}
    signals |= {"cls_attention": lambda: attention, "last_attention": lambda: attention[..., 0]}
    project = lambda rows: 2 * rows + 1  # noqa: E731
    image = methods.ImageTokens(
        (2 * x + 1).flatten(0, 1), layout, ("s", 0), signals, project=project
    )
    kept = build(name, ratio=0.5).keep(image)
    assert len(kept.indices) == 16 and kept.features.shape == (16, d)
    with pytest.raises(MethodError, match="projector"):
        build(name, ratio=0.5).keep(dataclasses.replace(image, project=None))
    near = build(name, ratio=0.5, merge_space="llm").keep(image)
    assert torch.equal(near.indices, kept.indices)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 30), cols=st.integers(1, 30), share=st.floats(0.01, 1))
def test_pooling_meets_any_count_with_cells_of_nearly_one_size(rows, cols, share):
    k = max(1, int(share * rows * cols))
    counts = torch.bincount(pool_cells(rows, cols, k), minlength=k)
    assert len(counts) == k and counts.min() >= 1
    assert len(set(ops.even_places(rows * cols, k).tolist())) == k


def test_pooling_a_constant_image_changes_nothing():
    image = packed_image(torch.ones(36 + 6 * 9, 4), base=(6, 6), canvas=(6, 8))
    kept = build("pool", ratio=0.7).keep(image)
    assert torch.equal(kept.features, torch.ones(len(kept.indices), 4))
    assert len(kept.indices) == n_keep(36, 0.7) + n_keep(48, 0.7) + 6


def test_sparsevlm_budgets_split_exactly():
    for n_visual in (576, 82, 40, 7):
        for total in range(1, n_visual):
            kept, clusters = split_budget(n_visual, total)
            assert kept + clusters == total and kept >= 1 and clusters >= 0
            assert clusters <= n_visual - kept
    assert split_budget(576, 82) == (66, 16)


# --- all ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", methods.available())
def test_options_round_trip_and_reject_nonsense(name):
    cls = methods.get(name)
    method = build(name, **({} if name == "none" else cls.example))
    assert build(name, **method.options()) == method
    with pytest.raises(MethodError, match="did you mean"):
        build(name, ratioo=0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.ratio = 0.1
    for option, value in method.options().items():
        if isinstance(value, str) and option != "recipe":
            with pytest.raises(MethodError, match=option):
                build(name, **{option: "nonsense"})


@pytest.mark.parametrize("name", [n for n in methods.available() if n != "none"])
def test_cost_grows_with_the_model(name):
    def cost(scale: int) -> int:
        shape = SelectionShape(
            views=(64 * scale,),
            kept=(32 * scale,),
            width=48,
            vision_width=32,
            tiles=1,
            patches=64 * scale,
            sequence=(80 * scale,) * 8,
            visual=(64 * scale,) * 2 + (32 * scale,) * 6,
            attention_width=48,
        )
        return build(name, **methods.get(name).example).cost(shape)

    assert cost(2) >= cost(1) >= 0
    free = ("random", "l2norm", "vtw", "uniform", "pool", "downsample", "text_only")
    assert (cost(1) == 0) == (name in free)


@pytest.mark.parametrize("name", methods.available())
def test_every_method_names_its_plain_parts_and_where_each_acts(name):
    method = build(name, **methods.get(name).example)
    assert method.chain
    for part in method.chain:
        assert part.chain == (part,)
        assert part.place in ("nowhere", "picture", "encoder", "tokens", "layers")
        assert method.part(part.place) is not None
