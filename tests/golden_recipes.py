"""Checks of FitPrune's golden cases: one selection, a whole model, the search of a recipe."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.golden_layers import check_end_to_end, head_max_signals, layer_signals
from tests.golden_llama import TinyLlama
from tests.golden_tools import Golden, assert_same_tokens, checks, position_ids
from vtprune.methods import build
from vtprune.methods.fitprune import published_recipes
from vtprune.methods.fitprune_search import Costs, search_recipe


@checks("fitprune")
def check_fitprune(golden: Golden) -> None:
    level = golden.params["level"]
    if level == "recipe_search":
        return check_recipe_search(golden)
    if level == "end_to_end":
        deletions = golden["delete_per_layer"].tolist()
        published = published_recipes()[golden.params["recipe"]]
        assert deletions == list(published[: len(deletions)])
        method = build(
            "fitprune",
            ratio=golden.params["recipe"] / 100,
            ratio_mode="local",
            recipe=tuple(deletions),
            recipe_scaling="counts",
        )
        return check_end_to_end(golden, method, last_deletion=deletions[-1])
    start, n_visual = golden.integer("image_start"), golden.integer("n_visual")
    n_delete, text = golden.integer("n_delete"), golden.integer("n_text_after")
    assert published_recipes()[golden.params["recipe"]][golden.params["layer"]] == n_delete
    method = build("fitprune", ratio=0.5)
    vectors = head_max_signals(golden["attention"], start, n_visual)
    signals = layer_signals(0, 2, torch.arange(n_visual), n_visual, **vectors)
    score = method.score(signals)
    torch.testing.assert_close(score, golden["expected_score"], rtol=5e-5, atol=0)
    kept = method.checked_select(signals, n_visual - n_delete).indices
    assert_same_tokens(kept, golden["expected_kept"], score, golden)
    positions = position_ids(method, start, kept, n_visual, text)
    assert torch.equal(positions, golden["expected_position_ids"])


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
