"""Every method keeps the tokens that its published implementation keeps.

``pytest tests/test_goldens.py [--goldens DIR]`` runs every file of every folder of DIR.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.golden_llama import TinyLlama
from tests.golden_tools import (
    Golden,
    assert_same_tokens,
    crops_layout,
    packed_image,
    single_view,
)
from vtprune.methods import build, ops
from vtprune.methods.base import ImageTokens, LayerMethod, LayerSignals, TokenMethod
from vtprune.methods.cdpruner import greedy_dpp, question_relevance
from vtprune.methods.dart import key_norms, least_similar
from vtprune.methods.divprune import farthest_points
from vtprune.methods.fastv import FastV
from vtprune.methods.fitprune import FitPrune, published_recipes
from vtprune.methods.fitprune_search import Costs, search_recipe
from vtprune.methods.holov import released_selection
from vtprune.methods.prumerge import (
    absorb,
    full_width_attention,
    neighbours,
    outlier_count,
    with_stride,
)
from vtprune.methods.seqprune import SequentialPrune
from vtprune.methods.sparsevlm import (
    rater_scores,
    recycle,
    recycled_counts,
    rotary_decay,
    split_budget,
)
from vtprune.methods.tome import merge_rounds, merge_tokens
from vtprune.methods.visionzip import contextual_features, contextual_tokens
from vtprune.methods.vispruner import important_and_diverse

CHECKERS: dict[str, Callable[[Golden], None]] = {}


def checks(folder: str) -> Callable[[Callable[[Golden], None]], Callable[[Golden], None]]:
    def decorate(checker: Callable[[Golden], None]) -> Callable[[Golden], None]:
        CHECKERS[folder] = checker
        return checker

    return decorate


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_path" not in metafunc.fixturenames:
        return
    root: Path = metafunc.config.getoption("--goldens")
    folders = sorted(p for p in root.glob("*") if p.is_dir() and not p.name.startswith((".", "_")))
    # A folder without cases stands for itself, so that it fails below instead of vanishing.
    paths = [p for folder in folders for p in sorted(folder.glob("*.npz")) or [folder]] or [root]
    ids = [str(p.relative_to(root)) for p in paths]
    metafunc.parametrize("golden_path", paths, ids=ids)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_golden(golden_path: Path) -> None:
    assert golden_path.is_file(), f"no golden cases in {golden_path}"
    folder = golden_path.parent.name
    assert folder in CHECKERS, (
        f"no checker for golden folder '{folder}'; write one in {Path(__file__).name} "
        f"(there are: {', '.join(sorted(CHECKERS))})"
    )
    CHECKERS[folder](Golden(golden_path))


# --- before the language model ------------------------------------------------------------------


@checks("gprune")
def check_gprune(golden: Golden) -> None:
    """Degrees, initial and final scores of both views, kept tokens, positions, l2, float16."""
    name = "gprune" if golden.params["init"] == "norm" else "graph_only"
    method = build(
        name,
        ratio=golden.number("ratio"),
        threshold=golden.number("threshold"),
        temperature=golden.number("temperature"),
        iterations=golden.integer("iterations"),
    )
    side, canvas = golden.params["side"], (golden.integer("rows"), golden.integer("cols"))
    image = packed_image(golden["features"], base=(side, side), canvas=canvas)
    rtol = golden.params["score_rtol"]

    score = torch.full((len(image.layout),), torch.inf)
    for view, part in zip(method._views(image), ("base", "hr"), strict=True):
        torch.testing.assert_close(
            method.initial(view), golden[f"expected_init_{part}"], rtol=rtol, atol=0
        )
        assert torch.equal(
            method.graph(view.features).degree, golden[f"expected_degree_{part}"].long()
        )
        score[view.index] = method.score(view)
        torch.testing.assert_close(
            score[view.index], golden[f"expected_score_{part}"], rtol=rtol, atol=0
        )

    kept = method.keep(image).indices
    assert_same_tokens(kept, golden["expected_kept"], score, golden, of=name)
    if torch.equal(kept, golden["expected_kept"]):
        start, end = golden.integer("image_start"), golden.integer("seq_len_full")
        text = torch.arange(start + len(image.layout), end)
        positions = torch.cat([torch.arange(start), start + kept, text])
        assert torch.equal(positions, golden["expected_position_ids"])

    if "expected_kept_l2only" in golden:
        l2 = build("l2norm", ratio=method.ratio)
        norm = torch.linalg.vector_norm(image.features, dim=-1)
        expected = golden["expected_kept_l2only"]
        assert_same_tokens(l2.keep(image).indices, expected, norm, golden, of="l2norm")
    if "expected_kept_half" in golden:
        half = method.replace(variant="released_fp16").keep(image).indices
        expected = set(golden["expected_kept_half"].tolist())
        assert len(expected & set(half.tolist())) >= 0.97 * len(expected)


@checks("tome")
def check_tome(golden: Golden) -> None:
    """Rounds, groups, sizes, representatives, merged features, and what the method returns."""
    features, n_out = golden["features"], golden.integer("n_out")
    per_round, atol = golden.params["per_round"], golden.params["feature_atol"]
    assert merge_rounds(len(features), n_out, per_round) == golden["expected_r_schedule"].tolist()
    merged = merge_tokens(features, n_out, per_round=per_round)
    assert torch.equal(merged.group, golden["expected_group"])
    assert torch.equal(merged.representative, golden["expected_representative"])
    assert torch.equal(merged.size, golden["expected_size"].to(merged.size.dtype))
    torch.testing.assert_close(merged.features, golden["expected_merged"], rtol=0, atol=atol)

    method = build("tome", ratio=golden.number("ratio"), per_round=per_round)
    kept = method.keep(packed_image(features, base=(1, len(features))))
    order = golden["expected_spatial_order"]
    assert torch.equal(kept.indices, golden["expected_representative"][order])
    expected = golden["expected_merged"][order]
    torch.testing.assert_close(kept.features, expected, rtol=0, atol=atol)


@checks("vispruner")
def check_vispruner(golden: Golden) -> None:
    """Both parts in the algorithm's order for all crops at once, and the method crop by crop."""
    features, attention = golden["features"], golden["cls_attention"]
    ratio, keep = golden.number("important_ratio"), golden.integer("visual_token_num")
    per_round = golden.integer("prune_per_round")
    mean = attention.mean(dim=1)
    torch.testing.assert_close(mean, golden["expected_mean_attention"], rtol=1e-6, atol=0)
    important, diverse = important_and_diverse(features, mean, keep, ratio, per_round)
    assert torch.equal(important, golden["expected_important"])
    assert torch.equal(diverse, golden["expected_residual_order"])
    kept = torch.cat([important, diverse], dim=1).sort().values
    assert torch.equal(kept, golden["expected_kept"])

    method = build(
        "vispruner",
        ratio=golden.number("ratio"),
        important_ratio=ratio,
        prune_per_round=per_round,
    )
    n_crops, n_tokens = features.shape[:2]
    layout = crops_layout(n_crops, n_tokens)
    tokens = torch.randn(len(layout), 8)
    signals = {
        "vision_features": lambda: features,
        "cls_attention": lambda: attention.transpose(1, 2),
        "tile_features": lambda: tokens.reshape(n_crops, n_tokens, -1),
    }
    image = ImageTokens(tokens, layout, ("sample", 0), signals)
    expected = golden["expected_kept"] + torch.arange(n_crops)[:, None] * n_tokens
    assert torch.equal(method.keep(image).indices, expected.flatten())


# --- inside the language model ------------------------------------------------------------------


def layer_signals(layer: int, n_layers: int, alive: Tensor, n_visual: int, **signals: Tensor):
    return LayerSignals(layer, n_layers, alive, n_visual, signals.__getitem__)


def head_max_signals(attention: Tensor, start: int, n_visual: int) -> dict[str, Tensor]:
    """FitPrune's two vectors from a whole attention map ``[H, S, S]``."""
    image = slice(start, start + n_visual)
    top = attention.amax(0)[:, image]
    return {"cross": top[start + n_visual :].sum(0), "self": top[image].sum(0) / n_visual}


@checks("fastv")
def check_fastv(golden: Golden) -> None:
    if golden.params.get("level") == "end_to_end":
        method = FastV(ratio=golden.number("ratio"), K=golden.integer("K"), ratio_mode="local")
        return check_end_to_end(golden, method)
    rounding = {"llama": "floor", "seqrepo": "int_raw", "hf": "round_half_even"}
    method = FastV(
        ratio=golden.number("ratio"),
        K=golden.integer("K"),
        ratio_mode="local",
        rounding=rounding[golden.params["variant"]],
    )
    start, n_visual = golden.integer("image_start"), golden.integer("n_visual")
    text = golden.integer("n_text_after")
    row = golden["last_row_logits"].softmax(-1)[:, start : start + n_visual]
    n_layers = len(golden["expected_tokens_per_layer"])
    plan = method.checked_schedule(n_layers, n_visual)
    assert plan[-1] == golden.integer("expected_n_kept")
    assert [start + n + text for n in plan] == golden["expected_tokens_per_layer"].tolist()
    signals = layer_signals(method.K - 1, n_layers, torch.arange(n_visual), n_visual, last_row=row)
    score = method.score(signals)
    torch.testing.assert_close(score, golden["expected_score"], rtol=5e-5, atol=0)
    kept = method.checked_select(signals, plan[-1]).indices
    assert_same_tokens(kept, golden["expected_kept"], score, golden)
    end = start + n_visual
    positions = torch.cat([torch.arange(start), start + kept, torch.arange(end, end + text)])
    assert torch.equal(positions, golden["expected_position_ids"])


@checks("sequential")
def check_sequential(golden: Golden) -> None:
    """Tokens alive in each layer; counts as the release truncates them."""
    percent = golden.params["prune_step_percent"]
    method = SequentialPrune(
        ratio=golden.number("ratio"),
        K=golden.integer("K"),
        step=percent / 100,
        ratio_mode="local",
        rounding="int_raw",
        strict_schedule=True,
    )
    if golden.params.get("level") == "end_to_end":
        return check_end_to_end(golden, method)
    logits, expected = golden["last_row_logits"], golden["expected_layer_mask"]
    start, n_visual = golden.integer("image_start"), golden.integer("n_visual")
    n_layers = len(logits)
    plan = method.checked_schedule(n_layers, n_visual)
    assert list(plan) == golden["expected_visual_tokens_per_layer"].tolist()
    alive = torch.arange(n_visual)
    for layer in range(n_layers):
        mask = torch.ones(logits.shape[-1], dtype=torch.bool)
        mask[start : start + n_visual] = False
        mask[start + alive] = True
        assert torch.equal(mask, expected[layer]), f"layer {layer}"
        if layer + 1 < n_layers and plan[layer + 1] < plan[layer]:
            row = logits[layer].masked_fill(~mask, -torch.inf).softmax(-1)[:, start + alive]
            signals = layer_signals(layer, n_layers, alive, n_visual, last_row=row)
            alive = alive[method.checked_select(signals, plan[layer + 1]).indices]
            assert torch.equal(alive, alive.sort().values), "not in order of position"


@checks("fitprune")
def check_fitprune(golden: Golden) -> None:
    level = golden.params["level"]
    if level == "recipe_search":
        return check_recipe_search(golden)
    if level == "end_to_end":
        deletions = golden["delete_per_layer"].tolist()
        published = published_recipes()[golden.params["recipe"]]
        assert deletions == list(published[: len(deletions)])
        method = FitPrune(
            ratio=golden.params["recipe"] / 100, ratio_mode="local", recipe=tuple(deletions)
        )
        return check_end_to_end(golden, method, last_deletion=deletions[-1])
    start, n_visual = golden.integer("image_start"), golden.integer("n_visual")
    n_delete, text = golden.integer("n_delete"), golden.integer("n_text_after")
    assert published_recipes()[golden.params["recipe"]][golden.params["layer"]] == n_delete
    method = FitPrune(ratio=0.5)
    vectors = head_max_signals(golden["attention"], start, n_visual)
    signals = layer_signals(0, 2, torch.arange(n_visual), n_visual, **vectors)
    score = method.score(signals)
    torch.testing.assert_close(score, golden["expected_score"], rtol=5e-5, atol=0)
    kept = method.checked_select(signals, n_visual - n_delete).indices
    assert_same_tokens(kept, golden["expected_kept"], score, golden)
    end = start + n_visual
    positions = torch.cat([torch.arange(start), start + kept, torch.arange(end, end + text)])
    assert torch.equal(positions, golden["expected_position_ids"])


def prefill(llama: TinyLlama, golden: Golden, method: LayerMethod):
    """Run the prompt under the method's own schedule and scores.

    Returns the hidden states leaving the last layer, per layer the original indices alive in it
    and its keys and values, and the last layer's attention.
    """
    x = golden["inputs_embeds"]
    start, n_visual = golden.integer("image_start"), golden.integer("n_visual")
    plan = method.checked_schedule(llama.n_layers, n_visual)
    sequence, alive, caches = torch.arange(len(x)), [], []
    for layer in range(llama.n_layers):
        alive.append(sequence)
        x, attention, cache = llama.layer(layer, x, sequence)
        caches.append(cache)
        if layer + 1 == llama.n_layers or plan[layer + 1] == plan[layer]:
            continue
        visual = (sequence >= start) & (sequence < start + n_visual)
        place = torch.nonzero(visual).squeeze(1)
        signals = layer_signals(
            layer,
            llama.n_layers,
            sequence[place] - start,
            n_visual,
            last_row=attention[:, -1, place],
            **head_max_signals(attention, start, len(place)),
        )
        picked = method.checked_select(signals, plan[layer + 1]).indices
        rows = torch.cat([torch.nonzero(~visual).squeeze(1), place[picked]]).sort().values
        x, sequence = x[rows], sequence[rows]
    return x, alive, caches, attention


def check_end_to_end(golden: Golden, method: LayerMethod, last_deletion: int = 0) -> None:
    """Tokens alive per layer, last hidden states, cache lengths, and decoding with the caches."""
    llama, atol = TinyLlama(golden), golden.params["hidden_atol"]
    x, alive, caches, attention = prefill(llama, golden, method)
    length, start = len(golden["inputs_embeds"]), golden.integer("image_start")
    for layer, expected in enumerate(golden["expected_layer_mask"]):
        mask = torch.zeros(length, dtype=torch.bool)
        mask[alive[layer]] = True
        assert torch.equal(mask, expected), f"layer {layer}"
    if last_deletion:
        # The release also drops rows of the last layer's output, which nothing reads.
        n_visual = len(alive[-1]) - start - golden.integer("n_text_after")
        vectors = head_max_signals(attention, start, n_visual)
        signals = layer_signals(
            llama.n_layers - 1, llama.n_layers, torch.arange(n_visual), n_visual, **vectors
        )
        kept = start + method.checked_select(signals, n_visual - last_deletion).indices
        rows = [torch.arange(start), kept, torch.arange(start + n_visual, len(x))]
        x = x[torch.cat(rows)]
    hidden = llama.norm(x, "norm")
    torch.testing.assert_close(hidden, golden["expected_last_hidden_state"], rtol=0, atol=atol)
    if "decode_embeds" not in golden:
        return
    lengths = [k.shape[1] for k, _ in caches]
    assert lengths == golden["expected_kv_len_after_prefill"].tolist()
    for step, token in enumerate(golden["decode_embeds"]):
        x, position = token[None], torch.tensor([length + step])
        assert int(position) == int(golden["expected_decode_positions"][step])
        for layer in range(llama.n_layers):
            x, _, caches[layer] = llama.layer(layer, x, position, caches[layer])
        expected = golden["expected_decode_hidden"][step]
        torch.testing.assert_close(llama.norm(x, "norm")[0], expected, rtol=0, atol=atol)


class LlamaReplay:
    """A calibration sample that the recipe search drives through a :class:`TinyLlama`."""

    def __init__(self, llama: TinyLlama, x: Tensor, start: int, n_visual: int) -> None:
        self.llama, self.x, self.start, self.n_visual = llama, x, start, n_visual
        self.positions, self.layer = torch.arange(len(x)), 0

    def attend(self) -> tuple[Tensor, Tensor]:
        self.x, attention, _ = self.llama.layer(self.layer, self.x, self.positions)
        self.layer += 1
        vectors = head_max_signals(attention, self.start, self.n_visual)
        text = len(self.x) - self.start - self.n_visual
        return vectors["cross"] / text, vectors["self"]

    def keep(self, indices: Tensor) -> None:
        end = self.start + self.n_visual
        rows = [torch.arange(self.start), self.start + indices, torch.arange(end, len(self.x))]
        rows = torch.cat(rows)
        self.x, self.positions, self.n_visual = self.x[rows], self.positions[rows], len(indices)


def check_recipe_search(golden: Golden) -> None:
    """Reference totals, then every trial of the bisection, and both ways to choose a recipe."""
    llama, p = TinyLlama(golden), golden.params
    start, n_visual = golden.integer("image_start"), golden.integer("n_visual")
    n_samples = len(golden["expected_weightsum_cross"])

    def fresh() -> list[LlamaReplay]:
        inputs = [golden[f"inputs_embeds_{i}"] for i in range(n_samples)]
        return [LlamaReplay(llama, x, start, n_visual) for x in inputs]

    totals = [
        [tuple(float(v.sum()) for v in replay.attend()) for _ in range(llama.n_layers)]
        for replay in fresh()
    ]
    sums = torch.tensor(totals, dtype=torch.float64)
    for part, name in enumerate(("cross", "self")):
        expected = golden[f"expected_weightsum_{name}"]
        torch.testing.assert_close(sums[..., part], expected, rtol=5e-5, atol=0)

    width, mlp = p["hidden_size"], p["intermediate_size"]
    costs = Costs(llama.n_layers, n_visual, width, mlp, budget="visual_macs")
    assert llama.n_layers * costs.layer(0, n_visual) == p["baseline_macs"]
    target = golden.number("target_reduction")
    result = search_recipe(fresh, totals, target, costs, tolerance=p["bisection_tolerance"])
    trials = [
        {"alpha": t.alpha, "budget_reached": t.reached, "delete_per_layer": list(t.deletions)}
        for t in result.trials
    ]
    assert trials == p["history"]
    assert list(result.recipe) == p["last_feasible_scheme"]
    last = search_recipe(fresh, totals, target, costs, return_last_trial=True)
    assert list(last.recipe) == p["printed_scheme"]


# --- later methods ------------------------------------------------------------------------------


def assert_scores(found: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def kept_of_crops(method: TokenMethod, features: Tensor, **signals: Tensor) -> Tensor:
    """Kept tokens ``[B, k]`` of crops ``[B, N, ...]`` when the method sees them as one image."""
    n_crops, n_tokens = features.shape[:2]
    offered = {name: lambda value=value: value for name, value in signals.items()}
    offered["tile_features"] = lambda: features
    image = ImageTokens(
        features.flatten(0, 1), crops_layout(n_crops, n_tokens), ("sample", 0), offered
    )
    kept = method.keep(image).indices.reshape(n_crops, -1)
    return kept - torch.arange(n_crops)[:, None] * n_tokens


def removal(n_keep: int, n: int) -> float:
    """A ratio that keeps exactly ``n_keep`` of ``n`` under every rounding."""
    return 1 - (n_keep + 1e-6) / n


@checks("fastervlm")
def check_fastervlm(golden: Golden) -> None:
    attention, keep = golden["cls_attn"], golden.params["keep_count"]
    method = build("fastervlm", ratio=removal(keep, attention.shape[-1]))
    for row, crop in enumerate(attention):
        score = method.score(single_view(torch.zeros(crop.shape[1], 4), cls_attention=crop.T))
        assert_scores(score, golden["expected_score"][row])
        assert torch.equal(ops.top_k(score, keep), golden["expected_topk_order"][row])
    tokens = torch.zeros(*attention.shape[::2], 4)
    kept = kept_of_crops(method, tokens, cls_attention=attention.transpose(1, 2))
    assert torch.equal(kept, golden["expected_kept_sorted"])


@checks("divprune")
def check_divprune(golden: Golden) -> None:
    """Order and distances; identical rows count as one token."""
    features, keep, group = golden["features"], golden.params["keep_count"], golden["group_id"]
    method = build("divprune", ratio=1 - golden.params["keep_ratio"])
    assert method.count(len(features)) == keep
    order, gap = farthest_points(1 - ops.cosine_graph(features), keep)
    assert torch.equal(group[order], group[golden["expected_order"]])
    assert_scores(gap, golden["expected_min_dist"])
    kept = method.keep(packed_image(features, base=(1, len(features)))).indices
    assert torch.equal(
        group[kept].sort().values, group[golden["expected_kept_sorted"]].sort().values
    )


@checks("cdpruner")
def check_cdpruner(golden: Golden) -> None:
    features, keep = golden["features"], golden.params["keep_count"]
    image, text = ops.unit(golden["image_embeds"]), ops.unit(golden["text_embeds"])
    similarity = (image @ text.T).mean(-1)
    relevance = question_relevance(similarity)
    assert_scores(relevance, golden["expected_relevance"])
    order, gains = greedy_dpp(features, relevance, keep)
    assert torch.equal(order, golden["expected_order"])
    assert_scores(gains, golden["expected_gains"])
    method = build("cdpruner", ratio=removal(keep, features.shape[1]))
    kept = kept_of_crops(method, features, clip_similarity=similarity)
    assert torch.equal(kept, golden["expected_kept_sorted"])


@checks("holov")
def check_holov(golden: Golden) -> None:
    """Part weights, quotas, list order and zero vectors, and the tokens the method emits."""
    features, attention, p = golden["features"], golden["attn"], golden.params
    keep = p["keep_count"]
    method = build("holov", ratio=removal(keep, features.shape[1]), parts=p["crops"])
    for row, (x, a) in enumerate(zip(features, attention, strict=True)):
        listed, quota, weights = released_selection(a, keep, p["crops"])
        assert_scores(weights, golden["expected_crop_weights"][row])
        assert torch.equal(quota, golden["expected_alloc"][row].long())
        expected = golden["expected_positions"][row].long()
        assert torch.equal(listed, expected)
        image = packed_image(x, base=(1, len(x)), cls_attention=a[None, :, None])
        emitted = method.keep(image).features
        assert torch.equal(emitted, x[expected.clamp(min=0)] * (expected >= 0)[:, None])


@checks("visionzip")
def check_visionzip(golden: Golden) -> None:
    """Dominant and contextual tokens, assignment and features; index 0 is CLS throughout."""
    p, hidden, metric = golden.params, golden["hidden"], golden["metric"]
    score = golden["cls_attn"].sum(1)[:, 1:]
    assert_scores(score, golden["expected_score"])
    n_dominant, count = p["dominant_total_including_cls"], p["contextual"]
    assert round((n_dominant + count) * 27 / 32) == n_dominant or p["case"] in ("case_1", "case_2")
    for row in range(len(hidden)):
        attended = 1 + ops.top_k(score[row], n_dominant - 1)
        dominant = torch.cat([attended.new_zeros(1), attended])
        assert torch.equal(dominant, golden["expected_dominant_topk_order"][row])
        dominant = dominant.sort().values
        assert torch.equal(dominant, golden["expected_dominant_sorted"][row])
        contextual = contextual_tokens(metric[row], dominant, count)
        assert torch.equal(contextual.targets, golden["expected_contextual_targets"][row])
        assert torch.equal(contextual.sources, golden["expected_merge_sources"][row])
        assert torch.equal(contextual.assignment, golden["expected_merge_assignment"][row])
        merged = contextual_features(hidden[row], contextual)
        features = torch.cat([hidden[row][dominant], merged])
        assert_scores(features, golden["expected_features"][row], p["feature_atol"])


@checks("prumerge")
def check_prumerge(golden: Golden) -> None:
    """Full-width attention, adaptive counts, strided tokens, neighbours and merged features."""
    p, hidden, keys = golden.params, golden["hidden"][:, 1:], golden["key"]
    attention = torch.stack(
        [full_width_attention(q, k) for q, k in zip(golden["q_cls"], keys, strict=True)]
    )
    assert_scores(attention, golden["expected_cls_attn"])
    n = attention.shape[1]
    if p["adaptive"]:
        outliers = outlier_count(attention.flatten())
        assert outliers / attention.numel() == pytest.approx(p["ratio_used"])
    count = int(n * p["ratio_used"])
    assert count == p["topk_count"]
    for row, a in enumerate(attention):
        chosen = ops.top_k(a, count)
        if p["method"] == "prumerge_plus":
            assert p["step_length"] == int(1 / p["ratio_used"])
            chosen = with_stride(chosen, n, p["step_length"] // 3)
        assert torch.equal(chosen, golden["expected_kept_order"][row].long())
        nearest = neighbours(keys[row, 1:], chosen, p["neighbours"])
        expected = golden["expected_neighbours_sorted"][row].long()
        assert torch.equal(nearest.sort().values, expected)
        merged = absorb(hidden[row], a, chosen, nearest)
        assert_scores(merged, golden["expected_features"][row], p["feature_atol"])
    if not p["adaptive"]:
        emitted = prumerge_emits(golden, attention, hidden, keys[:, 1:], count + 1)
        expected = golden["expected_features"].flatten(0, 1)
        assert_scores(emitted, expected, p["feature_atol"])


def prumerge_emits(
    golden: Golden, attention: Tensor, hidden: Tensor, keys: Tensor, keep: int
) -> Tensor:
    """Rows the method hands to the language model, with a projector that changes nothing."""
    n_crops, n = attention.shape
    offered = {
        "tile_features": lambda: hidden,
        "vision_features": lambda: hidden,
        "last_attention": lambda: attention,
        "last_keys": lambda: keys,
    }
    layout, key = crops_layout(n_crops, n), ("sample", 0)
    image = ImageTokens(hidden.flatten(0, 1), layout, key, offered, project=lambda x: x)
    method = build("prumerge", ratio=removal(keep, n), n_neighbours=golden.params["neighbours"])
    return method.keep(image).features


@checks("dart")
def check_dart(golden: Golden) -> None:
    """Pivots of both kinds, and what each takes in the order in which the reference visits them."""
    p, state = golden.params, golden["state"][0]
    keys = golden["key_states"][0].transpose(0, 1)
    start, end = p["start"], p["start"] + p["length"]
    image = ops.top_k(key_norms(keys[start:end]), p["pivot_image"])
    assert torch.equal(image, golden["expected_image_pivots"])
    text = ops.top_k(key_norms(keys[end:]), p["pivot_text"])
    assert torch.equal(end + text, golden["expected_text_pivots_abs"])
    taken = torch.zeros(p["length"], dtype=torch.bool)
    taken[image] = True
    pivots = state[golden["pivot_order_abs"].long()]
    groups = least_similar(state[start:end], pivots, taken, [p["per_pivot"]] * len(pivots))
    assert torch.equal(torch.stack(groups).sort().values, golden["expected_groups"])
    kept = torch.cat([image, *groups]).sort().values
    assert torch.equal(kept, golden["expected_kept_sorted"])

    signals = layer_signals(
        1,
        32,
        torch.arange(p["length"]),
        p["length"],
        keys=keys[start:end],
        normed=state[start:end],
        text_keys=keys[end:],
        text_normed=state[end:],
    )
    method = build("dart", ratio=0.5, pivot_image=p["pivot_image"], pivot_text=p["pivot_text"])
    mine = method.checked_select(signals, p["kept_count"]).indices
    order = torch.cat([start + image, end + text])
    visited = torch.cat(
        least_similar(state[start:end], state[order], taken, [p["per_pivot"]] * len(order))
    )
    assert torch.equal(mine, torch.cat([image, visited]).sort().values)


def next_layer_row(golden: Golden, row: int, length: int) -> Tensor:
    """Attention ``[H, length]`` of the last of ``length`` tokens by the next layer's weights."""
    p, x = golden.params, golden["hidden"][row, :length]
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + p["rms_eps"]) * golden["ln_weight"]
    half = p["head_dim"] // 2
    frequency = p["rope_base"] ** (-torch.arange(half).float() / half)
    angle = torch.arange(length).float()[:, None] * frequency

    def rotated(weight: Tensor) -> Tensor:
        y = (x @ weight.T).reshape(length, p["heads"], -1).transpose(0, 1)
        a, b = y[..., :half], y[..., half:]
        return torch.cat(
            [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1
        )

    q, k = rotated(golden["wq"])[:, -1:], rotated(golden["wk"])
    return (q @ k.mT * p["head_dim"] ** -0.5).softmax(-1).squeeze(1)


@checks("pyramiddrop")
def check_pyramiddrop(golden: Golden) -> None:
    """Scores, kept tokens, positions and mask of one stage, a padded batch included."""
    p = golden.params
    width, masks = golden["expected_position_ids"].shape[1], golden["expected_attention_mask"]
    fractions, method = p["ratios_after_each_stage"], build("pyramiddrop", ratio=0.5)
    for row, (now, after) in enumerate(zip(p["current_counts"], p["next_counts"], strict=True)):
        start, text = int(golden["image_pos"][row]), int(golden["prompt_len"][row])
        assert masks[row].sum() == after + text
        positions = golden["expected_position_ids"][row]
        assert torch.equal(positions[: after + text], torch.arange(after + text))
        if not now:
            continue
        full = int(golden["image_tokens_full"][row])
        assert method.count(full, 1 - fractions[p["stage"]]) == after
        attention = next_layer_row(golden, row, now + text)[:, start : start + now]
        signals = layer_signals(8, 32, torch.arange(now), full, next_row=attention)
        assert_scores(method.score(signals), golden["expected_score"][row, :now])
        kept = method.checked_select(signals, after).indices
        assert torch.equal(kept, golden["expected_kept_sorted"][row, :after].long())
    assert golden["expected_hidden_shape"].tolist()[1] == width


@checks("sparsevlm")
def check_sparsevlm(golden: Golden) -> None:
    """Raters, relevance, kept tokens, clusters, and the whole hidden state after a stage."""
    p, now = golden.params, golden.params["visual_tokens_now"]
    start, full, plus = p["n_sys"], p["image_tokens_full"], p["method"] == "sparsevlm_plus_v2"
    embeds, hidden = golden["embeds"][0], golden["out_hidden"][0]
    image, text = embeds[start : start + full], embeds[start + full :]
    scores = rater_scores(image, text)
    assert_scores(scores, golden["expected_rater_score"])
    raters = torch.nonzero(scores > scores.mean()).squeeze(1)
    assert torch.equal(raters, golden["expected_raters"].long())

    rows, visual = golden["attn_text"][:, :, start : start + now], hidden[start : start + now]
    distance = start + now + torch.arange(p["n_text"])[:, None] - torch.arange(now) - start
    signals = layer_signals(
        p["layer"],
        32,
        torch.arange(now),
        full,
        text_rows=rows,
        image_embeddings=image,
        text_embeddings=text,
        hidden=visual,
        text_distance=distance,
        keys=torch.zeros(now, 1, p["head_dim"]),
    )
    method = build("sparsevlm_plus" if plus else "sparsevlm", ratio=0.5)
    assert method.presets[p["retain_preset"]][list(method.layers).index(p["layer"])] == p["kept"]
    score, expected = method.score(signals), golden["expected_relevance"]
    if plus:
        decay = rotary_decay(distance, p["head_dim"])
        strength = (rows[:, raters] / decay[raters]).sum(dim=(1, 2))
        heads = ops.top_k(strength, method.heads).sort().values
        assert torch.equal(heads, golden["expected_heads_sorted"].long())
        assert_scores(score, expected, 1e-5 * float(expected.abs().max()))
    else:
        assert_scores(score, expected)
        check_recycling(golden, visual, score)
    total = p["kept"] + p["clusters"]
    picked = method.checked_select(signals, total)
    emitted = visual[picked.indices] if picked.features is None else picked.features
    whole = torch.cat([hidden[:start], emitted, hidden[start + now :]])
    assert_scores(whole, golden["expected_hidden"][0], p["feature_atol"])
    kept = ops.top_k(score, p["kept"]).sort().values
    assert torch.equal(kept, golden["expected_kept_sorted"].long())
    positions = torch.arange(len(whole))
    if plus:
        text_positions = torch.arange(start + now, start + now + p["n_text"])
        positions = torch.cat([torch.arange(start), start + kept, text_positions])
    assert torch.equal(positions, golden["expected_position_ids"].long())


def check_recycling(golden: Golden, visual: Tensor, score: Tensor) -> None:
    p = golden.params
    kept = ops.top_k(score, p["kept"])
    assert split_budget(len(visual), p["kept"] + p["clusters"]) == (p["kept"], p["clusters"])
    free = torch.ones(len(visual), dtype=torch.bool)
    free[kept] = False
    deleted = torch.nonzero(free).squeeze(1)
    assert recycled_counts(len(deleted)) == (len(golden["expected_recycled_order"]), p["clusters"])
    merged = recycle(visual, score, deleted, p["clusters"], 0.3)
    assert_scores(merged.features, golden["expected_merged"], p["feature_atol"])
    if not p["center_is_tie"]:
        assert torch.equal(merged.order, golden["expected_recycled_order"].long())
        assert torch.equal(merged.centres, golden["expected_cluster_centers"].long())
        assert torch.equal(merged.assignment, golden["expected_cluster_assign"].long())
