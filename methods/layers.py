"""Methods that drop tokens inside the language model, during prefill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtprune.methods import picks
from vtprune.methods.errors import MethodError
from vtprune.methods.method import PruningMethod
from vtprune.methods.options import option
from vtprune.methods.views import LayerSignals, Selection

#: signals with one entry for each visual token alive, and the dimension that counts them
PER_TOKEN = {"last_row": -1, "next_row": -1, "text_rows": -1, "text_distance": -1,
             "cross": 0, "self": 0, "hidden": 0, "normed": 0, "keys": 0}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LayerMethod(PruningMethod):
    """A method that drops tokens inside the language model, by the attention of one layer.

    Override ``schedule(n_layers, n_visual)``, or derive from one of ``methods/schedules.py``, and
    ``score(signals)``.
    """

    stage: ClassVar = "layer"
    place: ClassVar = "layers"
    needs: ClassVar[tuple[str, ...]] = ("last_row",)

    def schedule(self, n_layers: int, n_visual: int) -> tuple[int, ...]:
        """Visual tokens entering each of ``n_layers`` layers; non-increasing.

        Raises:
            MethodError: the ratio cannot be met; the message names the feasible range.
        """
        raise NotImplementedError(f"{type(self).__name__} must define schedule")

    def max_mean_ratio(self, n_layers: int) -> float:
        """Largest mean removal over ``n_layers`` layers; here: nothing is left after the first."""
        return 1 - 1 / n_layers

    def score(self, signals: LayerSignals) -> Tensor:
        """Importance ``[V]`` of the tokens alive; the largest stay."""
        raise NotImplementedError(f"{type(self).__name__} must define score or select")

    def select(self, signals: LayerSignals, k: int) -> Tensor | Selection:
        """The ``k`` tokens among those alive that stay (any order)."""
        return self.ranked(self.score(signals), signals, k)

    def ranked(self, score: Tensor, signals: LayerSignals, k: int) -> Tensor:
        """The ``k`` tokens with the largest ``score [V]``, best first, ties to the lower index."""
        return picks.best(self.name, score, len(signals), k)

    def checked_schedule(self, n_layers: int, n_visual: int) -> tuple[int, ...]:
        """``schedule`` with its promises verified."""
        if self.ratio == 0 or n_visual == 0:
            return (n_visual,) * n_layers
        plan = tuple(int(v) for v in self.schedule(n_layers, n_visual))
        falls = all(a >= b for a, b in zip((n_visual, *plan), plan, strict=False))
        if len(plan) != n_layers or not falls or plan[-1] < 0:
            raise MethodError(f"{self.name}: invalid schedule {plan} for {n_visual} tokens")
        return plan

    def checked_select(self, signals: LayerSignals, k: int) -> Selection:
        """``select`` of ``k`` tokens with its promises verified, sorted by position."""
        if k == 0:
            return Selection(signals.alive.new_empty(0))
        heard = signals.through(self._heard)
        picked = picks.pick(self.name, self.select(heard, k), len(signals), k)
        ranks = type(self).score is not LayerMethod.score
        return picks.settle(self.name, [picked], lambda _: self.score(heard) if ranks else None)[0]

    def _heard(self, signals: LayerSignals, name: str) -> Tensor:
        value = signals.signal(name)
        if name in PER_TOKEN:
            self.fit(name, value, {PER_TOKEN[name]: len(signals)})
        return self.cast(value) if value.is_floating_point() else value


@dataclass(frozen=True, kw_only=True)
class Redeciding(LayerMethod):
    """A method that may also choose anew at every decoding step."""

    redecide: bool = option(
        False, "true = choose again at every decoding step | false = once during prefill"
    )
