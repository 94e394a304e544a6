"""Checks of golden cases whose methods decide inside the language model, class in hand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor

from tests.golden_llama import TinyLlama
from tests.golden_tools import (
    Golden,
    assert_same_tokens,
    assert_scores,
    checks,
    position_ids,
    rounding_of,
)
from vtprune.methods import LayerMethod, LayerSignals, build, sparsevlm

# --- inside the language model ------------------------------------------------------------------


def layer_signals(layer: int, n_layers: int, alive: Tensor, n_visual: int, **signals: Tensor):
    return LayerSignals(layer, n_layers, alive, n_visual, signals.__getitem__)


def head_max_signals(attention: Tensor, start: int, n_visual: int) -> dict[str, Tensor]:
    """FitPrune's two vectors from a whole attention map ``[H, S, S]``."""
    image = slice(start, start + n_visual)
    top = attention.amax(0)[:, image]
    return {"cross": top[start + n_visual :].sum(0), "self": top[image].sum(0) / n_visual}


def released_rounding(golden: Golden) -> str:
    """How the case's release counted what stays after its last drop."""
    if "expected_n_kept" in golden:
        kept = golden.integer("expected_n_kept")
    else:
        kept = golden.params["visual_tokens_per_layer"][-1]
    return rounding_of(golden.number("ratio"), {golden.integer("n_visual"): kept})


@checks("fastv")
def check_fastv(golden: Golden) -> None:
    """Counts and tokens per layer, score, kept tokens, positions."""
    method = build(
        "fastv",
        ratio=golden.number("ratio"),
        K=golden.integer("K"),
        ratio_mode="local",
        rounding=released_rounding(golden),
    )
    if golden.params.get("level") == "end_to_end":
        return check_end_to_end(golden, method)
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
    positions = position_ids(method, start, kept, n_visual, text)
    assert torch.equal(positions, golden["expected_position_ids"])


@checks("sequential")
def check_sequential(golden: Golden) -> None:
    """Tokens alive in each layer; counts as the release truncates them."""
    percent = golden.params["prune_step_percent"]
    method = build(
        "seqprune",
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


def taken_by(state: Tensor, pivots: Tensor, taken: Tensor, each: int) -> Tensor:
    """``[p, each]`` tokens that pivots take in turn: the free ones least similar to each."""
    unit = torch.nn.functional.normalize
    similarity, groups = unit(pivots, dim=-1) @ unit(state, dim=-1).T, []
    free = ~taken
    for row in similarity:
        order = torch.sort(row.masked_fill(~free, torch.inf), stable=True).indices
        groups.append(order[:each].sort().values)
        free[groups[-1]] = False
    return torch.stack(groups)


@checks("dart")
def check_dart(golden: Golden) -> None:
    """Pivots of both kinds, what the class keeps with its own order of visits, and the counts.

    The release visits pivots in the order of a hash table, the class image first. What pivots take
    in a given order is worked out here, held against the golden in the release's order, and then
    against the class in the class's.
    """
    p, state = golden.params, golden["state"][0]
    keys, start, n = golden["key_states"][0].transpose(0, 1), p["start"], p["length"]
    end, norms = start + n, keys.abs().sum((1, 2))
    image = golden["expected_image_pivots"].long()
    text = golden["expected_text_pivots_abs"].long()
    taken = torch.zeros(n, dtype=torch.bool)
    taken[image] = True
    visited = state[golden["pivot_order_abs"].long()]
    groups = taken_by(state[start:end], visited, taken, p["per_pivot"])
    assert torch.equal(groups, golden["expected_groups"])
    kept = torch.cat([image, groups.flatten()]).sort().values
    assert torch.equal(kept, golden["expected_kept_sorted"])

    signals = layer_signals(
        1, 32, torch.arange(n), n, keys=keys[start:end], normed=state[start:end],
        text_keys=keys[end:], text_normed=state[end:],
    )  # fmt: skip
    method = build("dart", ratio=0.5, pivot_image=p["pivot_image"], pivot_text=p["pivot_text"])
    order = torch.cat([start + image, text])
    assert bool((norms[order[: len(image)]].diff() <= 0).all()), "pivots come by falling norm"
    groups = taken_by(state[start:end], state[order], taken, p["per_pivot"])
    expected = torch.cat([image, groups.flatten()]).sort().values
    assert torch.equal(method.checked_select(signals, p["kept_count"]).indices, expected)
    alone = method.select(signals, len(image) + len(order)).sort().values
    first = taken_by(state[start:end], state[order], taken, 1).flatten()
    assert torch.equal(alone, torch.cat([image, first]).sort().values)


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
    fraction, method = p["ratios_after_each_stage"][p["stage"]], build("pyramiddrop", ratio=0.5)
    for row, (now, after) in enumerate(zip(p["current_counts"], p["next_counts"], strict=True)):
        start, text = int(golden["image_pos"][row]), int(golden["prompt_len"][row])
        assert masks[row].sum() == after + text
        if not now:
            continue
        full = int(golden["image_tokens_full"][row])
        # A ratio is a fraction removed, which may cost the last bit of what is kept.
        assert method.count(full, 1 - fraction) == int((1 - (1 - fraction)) * full)
        assert after in (int(fraction * full), int(fraction * full + 1e-9))
        attention = next_layer_row(golden, row, now + text)[:, start : start + now]
        signals = layer_signals(8, 32, torch.arange(now), full, next_row=attention)
        assert_scores(method.score(signals), golden["expected_score"][row, :now])
        kept = method.checked_select(signals, after).indices
        assert torch.equal(kept, golden["expected_kept_sorted"][row, :after].long())
        found = position_ids(method, start, kept, now, text - start)
        assert torch.equal(found, golden["expected_position_ids"][row, : after + text])
    assert golden["expected_hidden_shape"].tolist()[1] == width


@contextlib.contextmanager
def release_split(now: int, kept: int, merged: int) -> Iterator[None]:
    """The class is given the sum of kept and merged tokens, which a few sums do not tell apart.

    There alone it is told how the case divides: one kept token more and one merged less is what
    the class would have made of it.
    """
    mine = sparsevlm.split_budget(now, kept + merged)
    if not merged or mine == (kept, merged):
        yield
        return
    assert sum(mine) == kept + merged and mine[1] == sparsevlm.recycled_counts(now - mine[0])[1]
    with mock.patch.object(sparsevlm, "split_budget", lambda *args: (kept, merged)):
        yield


@checks("sparsevlm")
def check_sparsevlm(golden: Golden) -> None:
    """Raters, relevance, kept and merged tokens, and the whole hidden state after a stage."""
    p, now = golden.params, golden.params["visual_tokens_now"]
    start, full, plus = p["n_sys"], p["image_tokens_full"], p["method"] == "sparsevlm_plus_v2"
    embeds, hidden = golden["embeds"][0], golden["out_hidden"][0]
    rows, visual = golden["attn_text"][:, :, start : start + now], hidden[start : start + now]
    distance = start + now + torch.arange(p["n_text"])[:, None] - torch.arange(now) - start
    signals = layer_signals(
        p["layer"], 32, torch.arange(now), full,
        text_rows=rows,
        image_embeddings=embeds[start : start + full],
        text_embeddings=embeds[start + full :],
        hidden=visual,
        text_distance=distance,
        keys=torch.zeros(now, 1, p["head_dim"]),
    )  # fmt: skip
    method = build("sparsevlm_plus" if plus else "sparsevlm", ratio=0.5)
    if full == 576 and p["layer"] in method.layers:  # the published tables count these
        kept = method.presets[p["retain_preset"]][method.layers.index(p["layer"])]
        assert kept == p["kept"]
    raters = torch.nonzero(method.rated_by(signals)).squeeze(1)
    assert torch.equal(raters, golden["expected_raters"].long())
    score, expected = method.score(signals), golden["expected_relevance"]
    assert_scores(score, expected, 1e-5 * float(expected.abs().max()) if plus else 1e-5)
    kept = golden["expected_kept_sorted"].long()

    with release_split(now, p["kept"], p["clusters"]):
        picked = method.checked_select(signals, p["kept"] + p["clusters"])
    emitted = visual[picked.indices] if picked.features is None else picked.features
    assert torch.equal(emitted[: len(kept)], visual[kept])
    places = kept
    if p["clusters"]:
        assert_scores(emitted[len(kept) :], golden["expected_merged"], p["feature_atol"])
        places = torch.cat([kept, golden["expected_cluster_centers"].long()])
    if not p["center_is_tie"]:
        assert torch.equal(picked.indices, places.sort().values)
    whole = torch.cat([hidden[:start], emitted, hidden[start + now :]])
    assert_scores(whole, golden["expected_hidden"][0], p["feature_atol"])
    text = len(whole) - start - len(emitted)
    positions = position_ids(method, start, picked.indices, now, text)
    assert torch.equal(positions, golden["expected_position_ids"].long())
