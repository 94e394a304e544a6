"""Checks of golden cases whose methods decide before the language model.

Every case is put in front of the method's *class*; what the golden holds besides the kept tokens
(scores, order, merged rows) is read off the class, too, or worked out here from its answer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.golden_tools import (
    Golden,
    assert_same_tokens,
    assert_scores,
    checks,
    crops_image,
    nearly_a_half,
    packed_image,
    position_ids,
    removal,
    rounding_of,
    single_view,
)
from vtprune.methods import build, cdpruner, holov, tome


def best(score: Tensor, k: int) -> Tensor:
    """Indices of the largest scores, best first, equal ones by index."""
    return torch.sort(score, descending=True, stable=True).indices[..., :k]


def cosines(x: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(x, dim=-1)
    return unit @ unit.mT


@checks("gprune")
def check_gprune(golden: Golden) -> None:
    """Degrees, initial and final scores of both views, kept tokens, positions, l2, float16."""
    name = "gprune" if golden.params["init"] == "norm" else "graph_only"
    p, ratio, n_base = golden.params, golden.number("ratio"), golden.integer("base_len")
    grid = (golden.integer("rows"), golden.integer("cols"))
    counting = rounding_of(ratio, {n_base: p["k_base"], grid[0] * grid[1]: p["k_hr"]})
    method = build(
        name,
        ratio=ratio,
        threshold=golden.number("threshold"),
        temperature=golden.number("temperature"),
        iterations=golden.integer("iterations"),
        rounding=counting,
    )
    x, rtol = golden["features"], p["score_rtol"]
    image = packed_image(x, base=(p["side"], n_base // p["side"]), canvas=grid)
    score = torch.full((len(x),), torch.inf)
    for part, index in (("base", torch.arange(n_base)), ("hr", golden["hr_index"])):
        view = single_view(x[index])
        expected = golden[f"expected_init_{part}"]
        torch.testing.assert_close(method.initial(view), expected, rtol=rtol, atol=0)
        degree = method.graph(view.features).degree
        assert torch.equal(degree.long(), golden[f"expected_degree_{part}"].long())
        score[index] = method.score(view)
        expected = golden[f"expected_score_{part}"]
        torch.testing.assert_close(score[index], expected, rtol=rtol, atol=0)

    kept = method.keep(image).indices
    assert_same_tokens(kept, golden["expected_kept"], score, golden, of=name)
    if torch.equal(kept, golden["expected_kept"]):
        start, after = golden.integer("image_start"), p["n_text_after"]
        found = position_ids(method, start, kept, len(x), after)
        assert torch.equal(found, golden["expected_position_ids"])

    if "expected_kept_l2only" in golden:
        l2 = build("l2norm", ratio=ratio, rounding=counting)
        norm = torch.linalg.vector_norm(x, dim=-1)
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
    rounds = tome.merge_rounds(len(features), n_out, per_round)
    assert rounds == golden["expected_r_schedule"].tolist()
    merged = tome.merge_tokens(features, n_out, per_round=per_round)
    assert torch.equal(merged.group, golden["expected_group"])
    assert torch.equal(merged.representative, golden["expected_representative"])
    assert torch.equal(merged.size, golden["expected_size"].to(merged.size.dtype))
    assert_scores(merged.features, golden["expected_merged"], atol)

    ratio, image = golden.number("ratio"), packed_image(features, base=(1, len(features)))
    counting = rounding_of(ratio, {len(features): n_out})
    method = build("tome", ratio=ratio, per_round=per_round, rounding=counting)
    kept, order = method.keep(image), golden["expected_spatial_order"]
    assert torch.equal(kept.indices, golden["expected_representative"][order])
    assert_scores(kept.features, golden["expected_merged"][order], atol)
    listed = method.replace(order="tome", positions="compact").keep(image)
    assert_scores(listed.features, golden["expected_merged"], atol)


@checks("vispruner")
def check_vispruner(golden: Golden) -> None:
    """Both parts in the algorithm's order, crops together and one by one, and what is kept."""
    features, attention = golden["features"], golden["cls_attention"].transpose(1, 2)
    crops, n, keep = *features.shape[:2], golden.integer("visual_token_num")
    ratio = golden.number("ratio")
    method = build(
        "vispruner",
        ratio=ratio,
        important_ratio=golden.number("important_ratio"),
        prune_per_round=golden.integer("prune_per_round"),
        rounding=rounding_of(ratio, {n: keep}),
    )
    views = [
        single_view(torch.zeros(n, 8), vision_features=x, cls_attention=a)
        for x, a in zip(features, attention, strict=True)
    ]
    mean = torch.stack([method.attention(view) for view in views])
    torch.testing.assert_close(mean, golden["expected_mean_attention"], rtol=1e-6, atol=0)
    expected = torch.cat([golden["expected_important"], golden["expected_residual_order"]], dim=1)
    assert torch.equal(torch.stack(method.select_all(views, [keep] * crops)), expected)
    for view, row in zip(views, expected, strict=True):
        assert torch.equal(method.select(view, keep), row)

    image = crops_image(torch.randn(crops, n, 8), vision_features=features, cls_attention=attention)
    kept = method.keep(image).indices.reshape(crops, -1) - torch.arange(crops)[:, None] * n
    assert torch.equal(kept, golden["expected_kept"])


@checks("fastervlm")
def check_fastervlm(golden: Golden) -> None:
    attention, keep = golden["cls_attn"].transpose(1, 2), golden.params["keep_count"]
    crops, n = attention.shape[:2]
    method = build("fastervlm", ratio=removal(keep, n))
    for row, crop in enumerate(attention):
        view = single_view(torch.zeros(n, 4), cls_attention=crop)
        assert_scores(method.score(view), golden["expected_score"][row])
        assert torch.equal(method.select(view, keep), golden["expected_topk_order"][row])
    image = crops_image(torch.zeros(crops, n, 4), cls_attention=attention)
    kept = method.keep(image).indices.reshape(crops, -1) - torch.arange(crops)[:, None] * n
    assert torch.equal(kept, golden["expected_kept_sorted"])


@checks("divprune")
def check_divprune(golden: Golden) -> None:
    """Order, and the distances that follow from it; identical rows count as one token."""
    features, keep, group = golden["features"], golden.params["keep_count"], golden["group_id"]
    n, ratio = len(features), 1 - golden.params["keep_ratio"]
    method = build("divprune", ratio=ratio)
    if nearly_a_half(ratio, n):  # doubles decide which way a half is rounded
        method = method.replace(ratio=removal(keep, n))
    assert method.count(n) == keep
    image = packed_image(features, base=(1, n))
    order = method.select(single_view(features), keep)
    assert torch.equal(group[order], group[golden["expected_order"]])
    distance = 1 - cosines(features)
    others = distance.clone().fill_diagonal_(torch.inf)[order[0]].min()
    later = [distance[order[i], order[:i]].min() for i in range(1, keep)]
    assert_scores(torch.stack([others, *later]), golden["expected_min_dist"])
    kept, expected = group[method.keep(image).indices], group[golden["expected_kept_sorted"]]
    assert torch.equal(kept.sort().values, expected.sort().values)


@checks("cdpruner")
def check_cdpruner(golden: Golden) -> None:
    features, keep = golden["features"], golden.params["keep_count"]
    unit = [torch.nn.functional.normalize(golden[f"{k}_embeds"], dim=-1) for k in ("image", "text")]
    similarity = (unit[0] @ unit[1].T).mean(-1)
    relevance = cdpruner.question_relevance(similarity)
    assert_scores(relevance, golden["expected_relevance"])
    _, gains = cdpruner.greedy_dpp(features, relevance, keep)
    assert_scores(gains, golden["expected_gains"])

    crops, n = features.shape[:2]
    method = build("cdpruner", ratio=removal(keep, n))
    views = [
        single_view(x, clip_similarity=s) for x, s in zip(features, similarity, strict=True)
    ]
    order = torch.stack(list(method.select_all(views, [keep] * crops)))
    assert torch.equal(order, golden["expected_order"])
    kept = method.keep(crops_image(features, clip_similarity=similarity)).indices
    kept = kept.reshape(crops, -1) - torch.arange(crops)[:, None] * n
    assert torch.equal(kept, golden["expected_kept_sorted"])


@checks("holov")
def check_holov(golden: Golden) -> None:
    """Part weights, quotas, list order and zero vectors, and the tokens the method emits."""
    features, attention, p = golden["features"], golden["attn"], golden.params
    keep = p["keep_count"]
    method = build("holov", ratio=removal(keep, features.shape[1]), parts=p["crops"])
    for row, (x, a) in enumerate(zip(features, attention, strict=True)):
        _, quota, weights = holov.released_selection(a, keep, p["crops"])
        assert_scores(weights, golden["expected_crop_weights"][row])
        assert torch.equal(quota, golden["expected_alloc"][row].long())
        expected = golden["expected_positions"][row].long()
        image = packed_image(x, base=(1, len(x)), cls_attention=a[None, :, None])
        emitted = method.keep(image).features
        assert emitted is not None, "zero vectors of the release are missing"
        assert torch.equal(emitted, x[expected.clamp(min=0)] * (expected >= 0)[:, None])


@checks("visionzip")
def check_visionzip(golden: Golden) -> None:
    """Places and content of what the class emits; the goldens' token 0 is CLS, which stays behind.

    The share of dominant tokens is the case's own, one less for CLS.
    """
    p, hidden, attention = golden.params, golden["hidden"], golden["cls_attn"]
    crops, n = len(hidden), hidden.shape[1] - 1
    n_dominant = p["dominant_total_including_cls"] - 1
    keep = n_dominant + p["contextual"]
    method = build("visionzip", ratio=removal(keep, n), dominant_share=n_dominant / keep)
    signals = {
        "vision_features": hidden[:, 1:],
        "vision_keys": golden["metric"][:, 1:],
        "cls_attention": attention[:, :, 1:].transpose(1, 2),
    }
    image = crops_image(hidden[:, 1:], project=lambda x: x, **signals)
    kept = method.keep(image)
    for row in range(crops):
        view = single_view(hidden[row, 1:], **{k: v[row] for k, v in signals.items()})
        score = method.attention(view)
        assert_scores(score * attention.shape[1], golden["expected_score"][row])
        expected = golden["expected_dominant_topk_order"][row, 1:] - 1
        assert torch.equal(best(score, n_dominant), expected)
        dominant = golden["expected_dominant_sorted"][row, 1:] - 1
        place, order = torch.cat([dominant, golden["expected_contextual_targets"][row] - 1]).sort()
        mine = slice(row * keep, (row + 1) * keep)
        assert torch.equal(kept.indices[mine] - row * n, place)
        content = golden["expected_features"][row, 1:][order]
        assert_scores(kept.features[mine], content, p["feature_atol"])


@checks("prumerge")
def check_prumerge(golden: Golden) -> None:
    """Attended (and strided) tokens, and every row the class emits, the residual one included.

    How many stay is the case's own. Of PruMerge+ the release's stride stands in for the class's
    way of spreading tokens, which :func:`check_spread` holds.
    """
    p, hidden, keys = golden.params, golden["hidden"][:, 1:], golden["key"]
    n = hidden.shape[1]
    logits = torch.einsum("bnd,bd->bn", keys, golden["q_cls"]) * keys.shape[-1] ** -0.5
    attention = logits.softmax(-1)[:, 1:]
    assert_scores(attention, golden["expected_cls_attn"])
    kept, options = p["kept"], {"n_neighbours": p["neighbours"]}
    method = build(p["method"], ratio=removal(kept + 1, n), **options)
    if p["method"] == "prumerge_plus":
        check_spread(method, attention, kept)
        stride = p["step_length"] // 3
        object.__setattr__(method, "choose", lambda a, k: strided(a, p["topk_count"], stride))
    for a, expected in zip(attention, golden["expected_kept_order"], strict=True):
        assert torch.equal(method.choose(a, kept), expected.long())
    signals = {
        "vision_features": hidden,
        "last_attention": attention,
        "last_keys": keys[:, 1:],
    }
    emitted = method.keep(crops_image(hidden, project=lambda x: x, **signals)).features
    expected = golden["expected_features"].flatten(0, 1)
    assert_scores(emitted, expected, p["feature_atol"])
    if p["method"] != "prumerge_plus":
        check_neighbours(golden, method, signals)


def strided(attention: Tensor, count: int, stride: int) -> Tensor:
    """The release's choice: attended tokens, then every so many-th of the others but the last."""
    chosen = best(attention, count)
    grid = torch.arange(0, len(attention) - 1, stride)
    return torch.cat([chosen, grid[~torch.isin(grid, chosen)]])


def check_spread(method, attention: Tensor, kept: int) -> None:
    """PruMerge+ by itself: a share by attention, the rest evenly over what is left."""
    n_attended = max(1, round(kept * method.attended_share))
    assert n_attended < kept
    for a in attention:
        chosen = method.choose(a, kept)
        assert len(chosen.unique()) == kept
        attended, spread = chosen[:n_attended], chosen[n_attended:]
        assert torch.equal(attended, best(a, n_attended))
        free = [i for i in range(len(a)) if i not in set(attended.tolist())]
        steps = torch.tensor([free.index(i) for i in spread.tolist()]).diff()
        assert int(steps.max() - steps.min()) <= 1, "not evenly spread"


def check_neighbours(golden: Golden, method, signals: dict[str, Tensor]) -> None:
    """Which tokens each kept one absorbs, read off merged rows of one-hot features."""
    n = signals["last_attention"].shape[1]
    for row, expected in enumerate(golden["expected_neighbours_sorted"]):
        own = {name: value[row] for name, value in signals.items()}
        own["vision_features"] = torch.eye(n)
        own["last_attention"] = own["last_attention"].clamp(min=1e-12)
        view = single_view(torch.eye(n), project=lambda x: x, **own)
        merged = method.select(view, golden.params["kept"] + 1).features[:-1]
        chosen = golden["expected_kept_order"][row].long()
        merged = merged - torch.eye(n)[chosen]
        found = [torch.nonzero(one).squeeze(1).tolist() for one in merged]
        assert found == expected.tolist()
