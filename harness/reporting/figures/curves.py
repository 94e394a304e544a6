"""Curves over ratios and costs, from a table's grid: Figures 3 and 4, and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vtprune.harness.reporting.figures import paper
from vtprune.harness.reporting.tables import cost, published, render
from vtprune.harness.reporting.tables.analysis import Grid, Value
from vtprune.harness.request.errors import ConfigError


@dataclass(frozen=True)
class Shape:
    """How panels are laid out: at most so many beside each other, each of this size in inches."""

    columns: int = 4
    width: float = 3.2
    height: float = 2.6
    text: float = 9  # points, of the titles below the axes


WIDE, NARROW = Shape(), Shape(2, 2.3, 2.2, 7)  # a page, and a phone


@dataclass(frozen=True)
class Point:
    """One finished cell of a column: its cost, and its score with an interval."""

    block: str
    label: str
    ratio: float
    cost: float
    value: Value


def points(grid: Grid, bench: str) -> list[Point]:
    """Finished cells of a column with their cost in 10^12 operations, as the table counts them.

    Cells that can only be counted otherwise are left out: they have no place on this axis.
    """
    found = []
    for row in grid.table.rows:
        value = grid.at(row, bench)
        results = [cell.result for cell in value.cells if cell.result]
        if value.value is None or not results:
            continue
        config = value.cells[0].wanted.config
        spent = [cost.count(config, result, grid.table.cost) for result in results]
        if any(one is None or one.convention != grid.table.cost for one in spent):
            continue
        mean = sum(one.tera for one in spent if one) / len(spent)
        found.append(Point(row.block, row.label, row.ratio, mean, value))
    return found


def cost_performance(grid: Grid, shape: Shape = WIDE) -> Any:
    """Figure 3: score against compute, one line per method, the unpruned model dashed."""
    scale, title = _unit(grid)
    return _panels(
        grid, shape, lambda p: p.cost * scale, title, lambda b, axes: _quoted(grid, b, axes)
    )


def _quoted(grid: Grid, bench: str, axes: Any) -> None:
    """The published points, where the model is of the size of the paper's."""
    scale, _ = _unit(grid)
    found = published.curve(grid.table, bench) if scale == 1 else []
    if found:
        axes.scatter(
            [p.cost for p in found], [p.value for p in found], s=46, marker="D", linewidths=1.1,
            facecolors="none", edgecolors="black", label="published (G-Prune, baseline)", zorder=4,
        )  # fmt: skip


def over_ratios(grid: Grid, shape: Shape = WIDE) -> Any:
    """Figure 4: score against the fraction removed."""
    return _panels(grid, shape, lambda p: p.ratio, "fraction of visual tokens removed")


_COUNTED = {"paper_gprune": "MACs, linear layers", "fvcore": "MACs, linear layers",
            "macs": "MACs", "flops": "FLOPs"}  # fmt: skip


def _unit(grid: Grid) -> tuple[float, str]:
    """Factor from 10^12 operations to the unit of the axis, and its title."""
    largest = max((p.cost for b in grid.table.benches for p in points(grid, b)), default=1.0)
    scale, power = (1.0, 12) if largest >= 0.1 else (1e3, 9) if largest >= 1e-4 else (1e6, 6)
    counted = _COUNTED.get(grid.table.cost, f"MACs as {grid.table.cost}")
    return scale, f"prefill, 10$^{{{power}}}$ {counted}"


def _styles(grid: Grid) -> dict[str, tuple[str, str]]:
    """Colour and marker of each method, the same in every panel."""
    blocks = dict.fromkeys(row.block for row in grid.table.rows if not row.is_baseline)
    styles = {b: (paper.COLORS[i % 8], paper.MARKERS[i % 8]) for i, b in enumerate(blocks)}
    ours = {row.block for row in grid.table.rows if row.ours}
    return {b: (color, "*" if b in ours else marker) for b, (color, marker) in styles.items()}


def _legend(made: Any, axes: Any, shape: Shape) -> None:
    """One entry per method over all panels, below them."""
    found: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    side_by_side = 6 if shape.columns > 2 else 3
    made.legend(
        found.values(), found.keys(), loc="outside lower center",
        ncols=min(side_by_side, len(found)), frameon=False,
    )  # fmt: skip


def _panels(grid: Grid, shape: Shape, x: Any, title: str, also: Any = None) -> Any:
    benches = [b for b in grid.table.benches if points(grid, b)]
    if not benches:
        raise ConfigError(f"table {grid.table.name} has no finished cell to draw")
    made, axes = _axes(len(benches), shape)
    for place, bench in enumerate(benches):
        _panel(axes.flat[place], points(grid, bench), x, _styles(grid))
        if also is not None:
            also(bench, axes.flat[place])
        _named(axes.flat[place], bench, title, shape)
    for empty in axes.flat[len(benches) :]:
        empty.set_axis_off()
    for line in axes[:, 0]:
        line.set_ylabel("score")
    _legend(made, axes, shape)
    return made


def _axes(panels: int, shape: Shape) -> tuple[Any, Any]:
    columns = min(shape.columns, panels)
    return paper.figure(-(-panels // columns), columns, shape.width, shape.height)


def _named(axes: Any, bench: str, title: str, shape: Shape) -> None:
    axes.set_title(render.heading(bench))
    axes.set_xlabel(title, fontsize=shape.text)


def _panel(axes: Any, found: Sequence[Point], x: Any, styles: dict[str, tuple[str, str]]) -> None:
    for block in dict.fromkeys(p.block for p in found):
        own = sorted((p for p in found if p.block == block), key=x)
        if own[0].ratio == 0:
            axes.axhline(own[0].value.value, color="black", ls="--", lw=1, label=own[0].label)
            axes.plot(x(own[0]), own[0].value.value, color="black", marker="*", ms=7)
            continue
        values = [p.value.value for p in own]
        color, marker = styles[block]
        pairs = list(zip(values, (p.value for p in own), strict=True))
        low = [0.0 if p.low is None else v - p.low for v, p in pairs]
        high = [0.0 if p.high is None else p.high - v for v, p in pairs]
        axes.errorbar(
            [x(p) for p in own], values, yerr=[_up(low), _up(high)], label=own[0].label,
            lw=2.4 if marker == "*" else 1.4, color=color, marker=marker,
            ms=9 if marker == "*" else 4, capsize=2, elinewidth=0.7,
        )  # fmt: skip


def _up(lengths: Sequence[float]) -> list[float]:
    return [max(0.0, length) for length in lengths]


def front(found: Sequence[Point]) -> list[Point]:
    """Points that no other beats in both: cheaper or as cheap, and better or as good."""
    kept: list[Point] = []
    for point in sorted(found, key=lambda p: (p.cost, -(p.value.value or 0))):
        if not kept or (point.value.value or 0) > (kept[-1].value.value or 0):
            kept.append(point)
    return kept


def pareto(grid: Grid, shape: Shape = WIDE) -> Any:
    """Score against compute of every row, and the front of those that nothing beats in both."""
    benches = [b for b in grid.table.benches if points(grid, b)]
    if not benches:
        raise ConfigError(f"table {grid.table.name} has no finished cell to draw")
    scale, title = _unit(grid)
    made, axes = _axes(len(benches), shape)
    for empty in axes.flat[len(benches) :]:
        empty.set_axis_off()
    for bench, place in zip(benches, axes.flat, strict=False):
        found = points(grid, bench)
        for block in dict.fromkeys(p.block for p in found):
            own = [p for p in found if p.block == block]
            color, marker = _styles(grid).get(block, ("black", "*"))
            place.scatter(
                [p.cost * scale for p in own], [p.value.value for p in own], color=color,
                s=90 if marker == "*" else 26, marker=marker, label=own[0].label, zorder=3,
            )  # fmt: skip
        best = front(found)
        place.step(
            [p.cost * scale for p in best], [p.value.value for p in best], where="post",
            color="0.4", lw=1,
        )  # fmt: skip
        _named(place, bench, title, shape)
    _legend(made, axes, shape)
    for line in axes[:, 0]:
        line.set_ylabel("score")
    return made
