"""Equal budgets: the ratio at which a method costs what was asked, instead of a ratio.

``budget.flops=0.4`` is the share of the unpruned prefill under ``budget.convention``,
``budget.mean_tokens=128`` the visual tokens per layer, mean over layers, and ``budget.latency=0.8``
the predicted seconds to the first token. All of them hold for one reference prompt, an image of
``image_size`` among ``text_tokens`` tokens, so every row of a table meets the same target on it.

``ratio`` is searched first, with the method's other options as they are; each method turns it into
knobs of its own (FastV its R, Sequential Prune its R and steps, FitPrune its recipe, PyramidDrop
its stages). Where that cannot meet the target, the options a method names in ``knobs`` move, fewest
and nearest first, unless they differ from their default, which means somebody chose them
(``budget.knobs=ratio`` moves none). What no combination reaches is an error that names the nearest
target one of them can.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from vtprune.harness.request.errors import ConfigError, unknown
from vtprune.harness.request.request import Request
from vtprune.harness.store import index

TOLERANCE = 0.01  # of the target
KINDS = ("flops", "mean_tokens", "latency")
KNOBS = ("own", "ratio")
_GRID = 64


@dataclass(frozen=True)
class Budget:
    """A target: ``kind`` of :data:`KINDS`, its value, and the convention FLOPs are counted in."""

    kind: str
    value: float
    convention: str

    def __str__(self) -> str:
        named = f" ({self.convention})" if self.kind == "flops" else ""
        return f"budget.{self.kind}={self.value:g}{named}"


@dataclass(frozen=True)
class Solution:
    """A ratio, and what the method costs there in the unit of the budget."""

    ratio: float
    achieved: float
    moved: dict[str, Any] = field(default_factory=dict)  # options that are not the method's default


def budget_of(request: Request) -> Budget | None:
    """The budget of a request, checked; None if none was asked for. No torch.

    Raises:
        ConfigError: two budgets, a budget beside a ratio, or a value out of range.
    """
    given = request.budget
    values = {kind: getattr(given, kind) for kind in KINDS if getattr(given, kind) is not None}
    if not values:
        return None
    if len(values) > 1:
        first, second, *_ = values
        raise ConfigError(f"give one budget: budget.{first} or budget.{second}")
    ((kind, value),) = values.items()
    if request.ratio is not None:
        raise ConfigError(f"give ratio or budget.{kind}, not both: the budget decides the ratio")
    if request.method.name == "none":
        raise ConfigError(f"method=none removes nothing, so budget.{kind} cannot be met")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise ConfigError(f"budget.{kind} must be a number > 0: got {value!r}")
    if kind == "flops" and value >= 1:
        raise ConfigError(f"budget.flops is a share of the unpruned prefill, in (0, 1): {value!r}")
    if (knobs := given.knobs or "own") not in KNOBS:
        raise ConfigError(unknown("budget.knobs", str(knobs), KNOBS))
    from vtprune.harness.cost.conventions import CONVENTIONS

    if given.convention not in CONVENTIONS:
        raise ConfigError(
            "budget.convention: " + unknown("convention", str(given.convention), CONVENTIONS)
        )
    return Budget(kind, float(value), given.convention)


def resolve(request: Request, notes: list[str]) -> Request:
    """The request with the budget's ratio in place; unchanged without a budget.

    Raises:
        ConfigError: the budget is malformed or infeasible for this method and model.
    """
    budget, method = budget_of(request), request.method
    if budget is None:
        return request
    cost = _costs(request, budget)
    found = solve(budget, cost, _variants(request), f"method={method.name}")
    moved = "".join(f", {option}={value}" for option, value in found.moved.items())
    where = f"image {request.image_size}, {request.text_tokens} text tokens"
    notes.append(f"{budget}: ratio={found.ratio:g}{moved} gives {found.achieved:.4g} on {where}")
    solved = request.changed(ratio=found.ratio).changed_in("method", **found.moved)
    before = {option: method.options.get(option) for option in found.moved}
    return solved.changed_in("budget", moved_from=before) if before else solved


def _variants(request: Request) -> list[dict[str, Any]]:
    """Changes of the method's options to try in turn, first none at all."""
    from vtprune import methods

    chosen = request.method
    if (request.budget.knobs or "own") == "ratio":
        return [{}]
    cls = methods.get(chosen.name) if not chosen.target else None
    if cls is None:
        return [{}]
    default = {f.name: f.default for f in fields(cls)}
    free = {
        knob: values
        for knob, values in cls.knobs.items()
        if _plain(chosen.options.get(knob, default[knob])) == _plain(default[knob])
    }
    steps = [[(0, None), *enumerate(values, start=1)] for values in free.values()]
    ways = sorted(itertools.product(*steps), key=lambda way: [sum(n for n, _ in way), way[::-1]])
    return [
        {knob: value for knob, (n, value) in zip(free, way, strict=True) if n} for way in ways
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def solve(
    budget: Budget,
    cost: Callable[..., float | None],
    variants: Iterable[dict[str, Any]],
    who: str,
) -> Solution:
    """The first of some variants of a method that meets the budget, and the ratio it does at.

    Of ratios that cost the same, the smallest. A grid first, because a method's cost need not fall
    everywhere with its ratio, then bisection between the neighbours that enclose the target.

    Args:
        cost: of a ratio and the changed options, in the budget's unit; None where the method
            cannot do it.

    Raises:
        ConfigError: none does; names the nearest target that any of them can meet.
    """
    nearest: Solution | None = None
    for changes in variants:
        found = _nearest(budget, functools.partial(cost, **changes))
        if found is None:
            continue
        ratio, got = found
        if abs(got - budget.value) <= TOLERANCE * budget.value:
            return Solution(ratio, got, changes)
        if nearest is None or abs(got - budget.value) < abs(nearest.achieved - budget.value):
            nearest = Solution(ratio, got, changes)
    if nearest is None:
        raise ConfigError(f"{who}: no ratio is feasible for this model")
    moved = "".join(f", {option}={value}" for option, value in nearest.moved.items())
    raise ConfigError(
        f"{who}: {budget} is infeasible; the nearest feasible target is "
        f"budget.{budget.kind}={nearest.achieved:.4g} (ratio={nearest.ratio:.6g}{moved})"
    )


def _nearest(
    budget: Budget, cost: Callable[[float], float | None]
) -> tuple[float, float] | None:
    """Ratio and cost nearest to the budget; None where no ratio is feasible."""
    points = [(i / _GRID, cost(i / _GRID)) for i in range(_GRID)]
    points += [(r, cost(r)) for r in _edge(points, cost)]
    known = [(r, c) for r, c in points if c is not None]
    for (low, above), (high, below) in itertools.pairwise(sorted(known)):
        if min(above, below) <= budget.value <= max(above, below):
            known += _bisected(cost, budget.value, low, high, above > below)
    return min(known, key=lambda p: (abs(p[1] - budget.value), p[0]), default=None)


def _bisected(
    cost: Callable[[float], float | None], target: float, low: float, high: float, falling: bool
) -> list[tuple[float, float]]:
    seen = []
    for _ in range(20):
        middle = round((low + high) / 2, 6)
        value = cost(middle)
        if value is None:
            break
        seen.append((middle, value))
        low, high = (middle, high) if (value > target) == falling else (low, middle)
    return seen


def _edge(
    points: Iterable[tuple[float, float | None]], cost: Callable[[float], float | None]
) -> list[float]:
    """Ratios at the end of the feasible range, which the grid steps over."""
    feasible = [r for r, c in points if c is not None]
    if not feasible:
        return []
    low, high = max(feasible), max(feasible) + 1 / _GRID
    for _ in range(20):
        middle = (low + high) / 2
        if middle < 1 and cost(middle) is not None:
            low = middle
        else:
            high = middle
    return [math.floor(low * 1e6) / 1e6]


def _costs(request: Request, budget: Budget) -> Callable[..., float | None]:
    """Cost of the request's method on the reference prompt: a function of ratio and options."""
    from vtprune.harness.cost import architecture_of, ledger, shapes
    from vtprune.harness.cost.conventions import convert
    from vtprune.harness.request.method import build_method
    from vtprune.methods import MethodError
    from vtprune.models.describe import hf_config

    described = shapes.architecture(request.model)
    model, text = shapes.skeleton(hf_config(described)), request.text_tokens
    size, limits = shapes.seen(shapes.parse_size(request.image_size), request, described)
    arch = architecture_of(model.config)
    with shapes.picture(model, size, limits) as whole:
        unpruned = shapes.record(model, whole.layouts, text)
    timed = _timed(request) if budget.kind == "latency" else {}

    def counted(record: Any, method: Any) -> float:
        if budget.kind == "mean_tokens":
            return sum(record.visual_per_layer) / record.n_layers
        cost = ledger.prefill(arch, record, method)
        if budget.kind == "latency":
            return _seconds(cost, ledger.prefill_full(arch, record), timed)
        tokens, encoded = ledger.tokens(arch, record, cost.selection)
        return float(convert(budget.convention, encoded, tokens))

    full = counted(unpruned, None)

    def cost(ratio: float, **changes: Any) -> float | None:
        chosen = request.changed(ratio=ratio).changed_in("method", **changes)
        try:
            method = build_method(chosen)
        except ConfigError:
            if not changes:
                raise  # the request is at fault, not the ratio
            return None
        try:
            if method.stage != "input":  # all others see the picture as it is
                record = shapes.record(model, whole.layouts, text, method)
            else:
                with shapes.picture(model, size, limits, method) as shown:
                    record = shapes.record(model, shown.layouts, text, method, shown.unreduced)
        except MethodError:
            return None
        value = counted(record, method)
        return value / full if budget.kind == "flops" else value

    return cost


def _seconds(cost: Any, full: Any, timed: dict[str, float]) -> float:
    """Predicted time to the first token; the selection runs at the rate of the prefill."""
    work = (cost.llm + cost.lm_head + cost.selection) / (full.llm + full.lm_head)
    return timed["setup"] + timed["vision"] + timed["prefill"] * work


def _timed(request: Request) -> dict[str, float]:
    """Seconds by stage of the unpruned model, from its newest stored timing of the same prompt.

    Raises:
        ConfigError: there is none; names the command that makes one.
    """
    found = index.timings(request.results, request.model.name)
    for stored in sorted(found, key=lambda timing: timing["finished"], reverse=True):
        same = (stored["identity"]["images"] == [request.image_size]
                and stored["identity"]["text_tokens"] == request.text_tokens)  # fmt: skip
        for batch in stored["batches"]:
            if same and batch["batch_size"] == 1:
                seconds = batch["baseline"]["seconds"]
                return {stage: entry["median"] for stage, entry in seconds.items()}
    raise ConfigError(
        f"budget.latency needs a timing of model={request.model.name} on this prompt first: "
        f"python run.py task=time model=... image_size={request.image_size} "
        f"text_tokens={request.text_tokens}"
    )
