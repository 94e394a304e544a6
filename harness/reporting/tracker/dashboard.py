"""Workspace and report over the mirrored cells; built without a server, saved with one.

A workspace has one filter for all its panels, so a panel about one benchmark (and one ratio) shows
a number that only the runs of that benchmark (and ratio) have logged: ``textvqa/score``,
``textvqa/score_at_0_9``. A report has a run set of its own, filtered, for every benchmark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from vtprune.harness.reporting.tracker.run import CELLS, score_of

NAME = "Visual-token pruning"
WIDE = wr.Layout(w=24, h=12)
COLUMNS = [  # of the list of runs, which is a table of cells as well
    "config:model.value", "config:method.value", "config:ratio.value", "config:bench.value",
    "config:data.value", "summary:score", "summary:removal", "summary:tflops",
    "summary:macs_percent", "summary:n_samples", "summary:n_failed",
]  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """What the panels are about.

    Attributes:
        benches: benchmarks, a section each.
        ratios: removal ratios, a panel of bars each.
        tables: Markdown of tables of the store as they are now.
    """

    benches: Sequence[str]
    ratios: Sequence[float] = ()
    tables: Sequence[str] = ()


def _panels(bench: str, ratios: Sequence[float]) -> list[Any]:
    """Of one benchmark: score over compute, a bar per method and ratio, all options at once."""
    score = wr.SummaryMetric(score_of(bench))
    columns = [wr.Config("method"), wr.Config("ratio"), wr.SummaryMetric("removal"),
               wr.SummaryMetric("tflops"), score]  # fmt: skip
    return [
        wr.ScatterPlot(title=f"{bench}: score vs TFLOPs", x=wr.SummaryMetric("tflops"), y=score),
        wr.BarPlot(
            title=f"{bench}: score by method and ratio", metrics=[score],
            groupby=wr.Config("row"), orientation="h",
        ),
        *(_at_ratio(bench, ratio) for ratio in ratios),
        wr.ParallelCoordinatesPlot(
            title=f"{bench}: options, cost and score",
            columns=[wr.ParallelCoordinatesPlotColumn(column) for column in columns],
        ),
    ]  # fmt: skip


def _at_ratio(bench: str, ratio: float) -> Any:
    return wr.BarPlot(
        title=f"{bench}: score at ratio {ratio:g}",
        metrics=[wr.SummaryMetric(score_of(bench, ratio))],
        groupby=wr.Config("method"), orientation="h",
    )  # fmt: skip


def _mirror(shown: Shown) -> list[Any]:
    """The table of cells, a line of each run; then tables of the store as text."""
    texts = [wr.MarkdownPanel(markdown=text, layout=WIDE) for text in shown.tables]
    return [wr.WeavePanelSummaryTable(table_name=CELLS, layout=WIDE), *texts]


def workspace(entity: str, project: str, shown: Shown) -> Any:
    """Sections: the table, then one per benchmark with the runs of that benchmark only."""
    layout = ws.SectionLayoutSettings(columns=1, rows=1)
    sections = [
        ws.Section(name="Table", is_open=True, panels=_mirror(shown), layout_settings=layout),
        *(ws.Section(name=bench, is_open=True, panels=_panels(bench, shown.ratios))
          for bench in shown.benches),
    ]  # fmt: skip
    runs = ws.RunsetSettings(  # not grouped: a group would be one point, the mean of its ratios
        order=[ws.Ordering(ws.Summary("score"), ascending=False)],
        pinned_columns=list(COLUMNS),
    )
    settings = ws.WorkspaceSettings(max_runs=1000)  # ten is what it shows otherwise
    return ws.Workspace(
        entity=entity, project=project, name=NAME, sections=sections, runset_settings=runs,
        settings=settings,
    )  # fmt: skip


def report(entity: str, project: str, shown: Shown, runs: Any = None) -> Any:
    """The same with words around it; ``runs`` makes the run set of a benchmark (None: of all)."""
    blocks: list[Any] = [wr.H1("Visual-token pruning"), wr.P(
        "Mirror of the result store: one run per finished cell. Runs whose data is mini are drawn "
        "stand-ins, not the benchmark."
    )]  # fmt: skip
    blocks += [wr.MarkdownBlock(text=text) for text in shown.tables]
    for bench in shown.benches:
        panels = [*_panels(bench, shown.ratios), *_mirror(Shown([]))]
        runsets = [runs(bench) if runs else wr.Runset(name=bench)]
        blocks += [wr.H2(bench), wr.PanelGrid(runsets=runsets, panels=panels)]
    return wr.Report(entity=entity, project=project, title=NAME, blocks=blocks)


def spec(entity: str, project: str, shown: Shown) -> dict[str, Any]:
    """Both as plain data, no server asked. The library's own name for it is private: pinned."""
    models = {
        "workspace": workspace(entity, project, shown)._to_model(),
        "report": report(entity, project, shown)._to_model(),
    }
    return {
        name: model.model_dump(by_alias=True, exclude_none=True, mode="json")
        for name, model in models.items()
    }


def save(entity: str, project: str, shown: Shown) -> list[str]:
    """Create both on the server; their addresses."""

    def runs(bench: str) -> Any:
        return wr.Runset(
            entity=entity, project=project, name=bench, filters=f"Config('bench') == '{bench}'"
        )

    made = workspace(entity, project, shown)
    made.save()
    written = report(entity, project, shown, runs)
    written.save(draft=True)
    return [made.url, written.url]
