"""FitPrune: a recipe says how many visual tokens each layer drops; attention says which."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import ClassVar, Literal

from torch import Tensor

from vtprune.methods import schedules
from vtprune.methods.cost import SelectionShape
from vtprune.methods.counts import LABELLED_TOKENS
from vtprune.methods.errors import MethodError
from vtprune.methods.layers import Redeciding
from vtprune.methods.options import option
from vtprune.methods.registry import register
from vtprune.methods.schedules import fit_to_mean, survival
from vtprune.methods.views import LayerSignals


@cache
def published_recipes() -> dict[int, tuple[int, ...]]:
    """Deletions per layer by percentage, as released for LLaVA-1.5-7B."""
    recipes: dict[int, list[int]] = {}
    file = files("vtprune.methods").joinpath("data/fitprune_llava15_7b.csv")
    text = file.read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        recipes.setdefault(int(row["recipe_percent"]), []).append(int(row["n_delete"]))
    return {percent: tuple(counts) for percent, counts in recipes.items()}


@register("fitprune")
@dataclass(frozen=True, kw_only=True)
class FitPrune(Redeciding):
    """Drop in each layer the tokens with the least cross- times self-attention.

    For a visual token j, ``cross_j`` sums the head-wise maximum of the attention it receives from
    the text after the image, ``self_j`` that from the visual tokens alive; both after the softmax.
    How many go in which layer is a recipe, searched on calibration samples so that attention
    changes as evenly as a budget allows (see :mod:`methods.fitprune_search`). Source: "Fit and
    Prune: Fast and Training-free Visual Token Pruning for MLLMs" (arXiv 2409.10197).

    The release deletes inside a layer, after its attention and before its output projection. No
    later layer can tell this from a drop at the input of the next layer, which is what
    ``schedule`` states: tokens *entering* each layer. What a recipe deletes in the last layer has
    no effect on the output and is left out. Other deviations: any number of layers, images and
    tokens; the search returns the last recipe that meets its budget instead of the last one tried.

    ``ratio_mode=mean`` removes ``ratio`` on average over layers: the recipe's curve of surviving
    tokens is blended with its neighbour's until the mean is met (published recipes remove 0.874
    instead of 0.9, for instance). ``ratio_mode=local`` uses the recipe as it is.

    ``recipe=published`` are those released for LLaVA-1.5-7B, at 0, 10, ..., 90 and 55 percent;
    ``calibrated`` is a stored result of the search, to be resolved before a run; a list holds
    deletions per layer, whole numbers of tokens or fractions of them. Calibration replays the model
    for each trial (``fit_mode=replay``), or drops entries of statistics taken once (``offline``,
    cheaper, approximate).
    """

    recipe: Literal["published", "calibrated"] | tuple[float, ...] = option(
        "published", "published (LLaVA-1.5-7B) | calibrated (stored search) | [deletions per layer]"
    )
    recipe_scaling: Literal["auto", "counts", "fraction"] = option(
        "auto",
        "counts = deletions as they are, the model must fit | fraction = re-sampled to other "
        "numbers of tokens and layers | auto = counts where they fit",
    )
    fit_mode: Literal["replay", "offline"] = option(
        "replay", "calibration: replay = run the model per trial | offline = statistics taken once"
    )
    budget: Literal["mean_tokens", "visual_macs", "total_flops"] = option(
        "mean_tokens", "calibration: mean_tokens | visual_macs (release) | total_flops (with text)"
    )
    return_last_trial: bool = option(
        False, "calibration: true = last recipe tried, as released, met budget or not"
    )
    n_calibration: int = option(64, "calibration: number of samples", low=1)

    title = "FitPrune"
    paper = "arXiv:2409.10197"
    needs: ClassVar[tuple[str, ...]] = ("cross", "self")
    query_aware = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.recipe, str) and (not self.recipe or min(self.recipe) < 0):
            raise MethodError("fitprune: recipe needs one deletion >= 0 per layer")

    def _recipes(self) -> list[tuple[float, ...]]:
        """Deletions per layer: the one recipe to use, or in mean mode all published ones."""
        if self.recipe == "calibrated":
            raise MethodError(
                "fitprune: recipe=calibrated is not resolved; run the calibration for this model "
                "and ratio first, or give recipe=published or a list of deletions"
            )
        if self.recipe != "published":
            return [self.recipe]  # type: ignore[list-item]
        recipes = published_recipes()
        if self.ratio_mode == "mean":
            return list(recipes.values())
        percent = round(100 * self.ratio, 6)
        if percent not in recipes:
            raise MethodError(
                f"fitprune: no published recipe for ratio={self.ratio:g} with ratio_mode=local; "
                f"there are {', '.join(f'{p / 100:g}' for p in sorted(recipes))}"
            )
        return [recipes[percent]]  # type: ignore[index]

    def _as_counts(self, recipe: Sequence[float], n_layers: int, n_visual: int) -> bool:
        """Whether the recipe's numbers are to be taken as they are."""
        whole = all(float(n).is_integer() for n in recipe)
        tokens = LABELLED_TOKENS if self.recipe == "published" else n_visual
        fits = whole and len(recipe) == n_layers and tokens == n_visual and sum(recipe) < n_visual
        if self.recipe_scaling == "counts" and not fits:
            raise MethodError(
                f"fitprune: a recipe of {len(recipe)} layers deleting {sum(recipe):g} tokens does "
                f"not fit {n_layers} layers and {n_visual} tokens; use recipe_scaling=fraction"
            )
        return fits and self.recipe_scaling != "fraction"

    def _fractions(self, recipe: Sequence[float], n_visual: int) -> list[float]:
        if self.recipe == "published":
            return [n / LABELLED_TOKENS for n in recipe]
        if any(n >= 1 for n in recipe):
            return [n / n_visual for n in recipe]
        return list(recipe)

    def schedule(self, n_layers: int, n_visual: int) -> tuple[int, ...]:
        recipes = self._recipes()
        if self.ratio_mode == "local" and self._as_counts(recipes[0], n_layers, n_visual):
            deletions = [int(n) for n in recipes[0][:-1]]
            return tuple(itertools.accumulate(deletions, int.__sub__, initial=n_visual))
        for recipe in recipes:
            self._as_counts(recipe, n_layers, n_visual)
        curves = [survival(self._fractions(r, n_visual), n_layers) for r in recipes]
        curve = curves[0] if self.ratio_mode == "local" else fit_to_mean(curves, self.ratio)
        return schedules.counts(curve, n_visual, self.rounding)

    def score(self, signals: LayerSignals) -> Tensor:
        return signals.signal("cross") * signals.signal("self")

    def cost(self, shape: SelectionShape) -> int:
        """All logits once more in layers that drop: a softmax needs each row's denominator.

        Rows before the first visual token are skipped.
        """
        rows = [shape.sequence[layer] for layer in shape.drops]
        return sum((n - shape.before) * n for n in rows) * shape.attention_width
