"""Figures 1b and 5 from stored probes: norms of fore- and background, information over steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vtprune.harness.reporting.figures import paper
from vtprune.harness.request.errors import ConfigError


def _load(file: Path) -> dict[str, Any]:
    with np.load(file) as stored:
        return {name: stored[name] for name in stored.files}


def heat_maps(file: Path) -> Any:
    """Figure 5: rank of what each token holds, per degree, after so many propagation steps."""
    stored = _load(file)
    steps, views = stored["steps"], int(stored["views"])
    made, axes = paper.figure(views, len(steps) + 1, 1.5, 1.7)
    for number in range(views):
        grid, flow = tuple(stored[f"grid_{number}"]), stored[f"flow_{number}"]
        axes[number, 0].imshow(stored["image"])
        axes[number, 0].set_title("image" if number == 0 else "", fontsize=8)
        for place, (count, values) in enumerate(zip(steps, flow, strict=True), 1):
            # Ranks, because the order of the tokens decides and amounts span decades.
            ranks = values.argsort(kind="stable").argsort(kind="stable")
            axes[number, place].imshow(ranks.reshape(grid), cmap="magma")
            axes[number, place].set_title(f"{count} step" + "s" * int(count != 1), fontsize=8)
        for axis in axes[number]:
            axis.set_axis_off()
    made.suptitle(str(stored["question"]).splitlines()[0], fontsize=9)
    made.supxlabel("tokens ranked within each panel by what they hold; bright: most", fontsize=7)
    return made


def norms(files: Sequence[Path]) -> Any:
    """Figure 1b: l2 norms of all, foreground and background tokens over all probes."""
    if not files:
        raise ConfigError("no probes stored; run: python scripts/figures.py probe")
    front, back = [], []
    for file in files:
        stored = _load(file)
        for number in range(int(stored["views"])):
            mask = stored[f"foreground_{number}"]
            front.append(stored[f"norm_{number}"][mask])
            back.append(stored[f"norm_{number}"][~mask])
    fore, rest = np.concatenate(front), np.concatenate(back)
    edges = np.linspace(0, np.quantile(np.concatenate([fore, rest]), 0.995), 50)
    made, axes = paper.figure(1, 1, 4.2, 3.2)
    axis = axes[0, 0]
    for values, name, color in ((fore, "foreground", "#D55E00"), (rest, "background", "#0072B2")):
        axis.hist(values, bins=edges, density=True, alpha=0.55, color=color,
                  label=f"{name} ({len(values)})")  # fmt: skip
        axis.axvline(np.median(values), color=color, lw=1, ls="--")
    every = np.concatenate([fore, rest])
    axis.hist(every, bins=edges, density=True, histtype="step", color="black", lw=1,
              label=f"all ({len(every)})")  # fmt: skip
    axis.set(xlabel="l2 norm of a token behind the projector", ylabel="density")
    axis.set_title("foreground: half of the CLS attention; dashed: medians", fontsize=8)
    made.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return made
