"""Pictures of cost: where the compute goes, and whether less of it is faster.

    python scripts/cost_figures.py [results] [--out results/figures]

Read from a result folder: profiles/ (task=profile), runs/timing (task=time) and the cells of runs/.
Nothing is computed anew.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtprune import places
from vtprune.harness.request import arguments as given
from vtprune.harness.request.errors import HarnessError
from vtprune.harness.store import index

STAGES = ("vision", "projector", "selection", "llm", "lm_head")
LABELS = {"vision": "vision tower", "llm": "language model", "lm_head": "LM head"}


@dataclass(frozen=True)
class Bar:
    """One bar: what was run (``group`` = model and prompt), and MACs by stage."""

    group: str
    label: str
    macs: dict[str, float]


@dataclass(frozen=True)
class Point:
    """One timing: predicted and measured speed-up of a stage."""

    label: str
    stage: str
    predicted: float
    measured: float


def bars(results: Path) -> list[Bar]:
    """Every profile and every finished cell with an image, unpruned first."""
    found = {}
    for data in index.profiles(results):
        width, height = data["image_size"]
        group = f"{data['model']}, one image {width} x {height}"
        found[group, "unpruned"] = Bar(group, "unpruned", data["full"]["stages"])
        label = _label(data)
        if data["ratio"]:
            found[group, label] = Bar(group, label, data["pruned"]["stages"])
    for data in index.finished(results):
        macs = data["counters"].get("macs")
        if macs:
            group = f"{data['model']}, mean of {data['bench']} ({data['data']})"
            label = _label(data) if data["ratio"] else "unpruned"
            found[group, label] = Bar(group, label, macs)
    return sorted(found.values(), key=lambda bar: (bar.group, -_total(bar), bar.label))


def points(results: Path) -> list[Point]:
    """Every timed pruning method, at each batch size: time to the first token, and end to end."""
    found = []
    for data in index.timings(results):
        if not data["ratio"]:
            continue
        for batch in data["batches"]:
            size = f", batch {batch['batch_size']}" if batch["batch_size"] > 1 else ""
            seen = batch["comparison"]
            for stage in ("ttft", "end_to_end"):
                found.append(Point(f"{_label(data)}{size}", stage, seen["predicted"][stage],
                                   seen["measured"][stage]))  # fmt: skip
    return found


def draw_breakdown(results: Path, folder: Path) -> list[Path]:
    """Stacked bars of MACs by stage, a panel per model and prompt; the files written.

    Raises:
        HarnessError: nothing was profiled or run.
    """
    from vtprune.harness.reporting.figures import paper

    found = bars(results)
    if not found:
        raise HarnessError(f"no profile and no finished cell below {results}")
    groups = list(dict.fromkeys(bar.group for bar in found))
    most = max(sum(bar.group == group for bar in found) for group in groups)
    made, axes = paper.figure(len(groups), 1, width=6.4, height=0.9 + 0.26 * most)
    for axis, group in zip(axes[:, 0], groups, strict=True):
        _stack(axis, [bar for bar in found if bar.group == group], paper.COLORS)
        axis.set_title(group, loc="left", fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    made.legend(
        handles, labels, loc="outside upper center", ncols=len(STAGES), fontsize=8,
        frameon=False, handlelength=1, columnspacing=1.2,
    )  # fmt: skip
    return paper.save(made, folder / "cost_breakdown")


def _stack(axis: Any, rows: list[Bar], colors: tuple[str, ...]) -> None:
    unit, name = _unit(max(map(_total, rows)))
    whole = next((_total(bar) for bar in rows if bar.label == "unpruned"), None)
    for place, bar in enumerate(rows):
        left = 0.0
        for stage, color in zip(STAGES, colors, strict=False):
            value = bar.macs.get(stage, 0) / unit
            label = LABELS.get(stage, stage) if place == 0 else None
            axis.barh(place, value, left=left, color=color, height=0.7, label=label)
            left += value
        share = f"  ({100 * _total(bar) / whole:.0f} %)" if whole and whole != _total(bar) else ""
        axis.text(left, place, f" {left:.3g}{share}", va="center", fontsize=8)
    axis.set_yticks(range(len(rows)), [bar.label for bar in rows])
    axis.invert_yaxis()
    axis.margins(x=0.16)
    axis.set_axisbelow(True)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(f"{name}MAC per prefill")


def draw_speedup(results: Path, folder: Path) -> list[Path]:
    """Measured over predicted speed-up of every timing; on the diagonal nothing is lost.

    Raises:
        HarnessError: nothing was timed.
    """
    from vtprune.harness.reporting.figures import paper

    found = points(results)
    if not found:
        raise HarnessError(f"no timing of a pruning method below {results} (task=time makes one)")
    made, axes = paper.figure(1, 1, width=5.0, height=3.8)
    axis = axes[0, 0]
    top = 1.08 * max(max(p.predicted, p.measured) for p in found)
    low = 0.95 * min(1.0, *(min(p.predicted, p.measured) for p in found))
    axis.plot([low, top], [low, top], color="#999999", linewidth=1, zorder=0)
    labels = list(dict.fromkeys(p.label for p in found))
    for point in found:
        color = paper.COLORS[labels.index(point.label) % len(paper.COLORS)]
        first = point.stage == "ttft"
        axis.scatter(
            point.predicted, point.measured, marker="o" if first else "s", edgecolors=color,
            facecolors=color if first else "none", label=point.label if first else None,
        )  # fmt: skip
    axis.set(xlim=(low, top), ylim=(low, top), xlabel="speed-up predicted from compute",
             ylabel="speed-up measured")  # fmt: skip
    axis.set_title("filled: time to the first token; open: end to end", loc="left", fontsize=8)
    axis.legend(loc="upper left", fontsize=8, frameon=False)
    return paper.save(made, folder / "speedup_predicted_measured")


def main(arguments: Sequence[str]) -> int:
    """Draw what the folder has data for; 1 if it has none at all."""
    parser = given.parser("costs", __doc__)
    parser.add_argument("results", nargs="?", type=Path, default=places.RESULTS)
    parser.add_argument("--out", type=Path, help="default: <results>/figures")
    options = parser.parse_args(arguments)
    folder, drawn = options.out or options.results / "figures", []
    for draw in (draw_breakdown, draw_speedup):
        try:
            drawn += draw(options.results, folder)
        except HarnessError as error:
            print(f"left out: {error}", file=sys.stderr)
    for file in drawn:
        print(file)
    return 0 if drawn else 1


def _label(data: dict[str, Any]) -> str:
    return f"{data['method']} {data['ratio']:g}"


def _total(bar: Bar) -> float:
    return sum(bar.macs.get(stage, 0) for stage in STAGES)


def _unit(largest: float) -> tuple[float, str]:
    return (1e12, "T") if largest >= 1e11 else (1e9, "G")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
