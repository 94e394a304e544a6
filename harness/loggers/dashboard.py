"""Workspace and report over the mirrored cells; built without a server, saved with one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

NAME = "Visual-token pruning"


def _scatter(title: str) -> Any:
    return wr.ScatterPlot(
        title=title, x=wr.SummaryMetric("tflops"), y=wr.SummaryMetric("score")
    )


def _bars() -> Any:
    return wr.BarPlot(
        title="score by method", metrics=[wr.SummaryMetric("score")],
        groupby=wr.Config("method"), orientation="h",
    )  # fmt: skip


def _by_ratio() -> Any:
    return wr.BarPlot(
        title="score by ratio", metrics=[wr.SummaryMetric("score")],
        groupby=wr.Config("ratio"), orientation="v",
    )  # fmt: skip


def _parallel() -> Any:
    columns = [wr.Config("method"), wr.Config("ratio"), wr.SummaryMetric("removal"),
               wr.SummaryMetric("tflops"), wr.SummaryMetric("score")]  # fmt: skip
    return wr.ParallelCoordinatesPlot(
        columns=[wr.ParallelCoordinatesPlotColumn(column) for column in columns]
    )


def workspace(entity: str, project: str, benches: Sequence[str]) -> Any:
    """Sections: the comparison, and a scatter plot per benchmark (filter its group there)."""
    sections = [
        ws.Section(
            name="Methods", is_open=True,
            panels=[_scatter("score vs TFLOPs"), _bars(), _by_ratio(), _parallel()],
        ),
        *(ws.Section(name=bench, panels=[_scatter(f"{bench}: score vs TFLOPs")])
          for bench in benches),
    ]  # fmt: skip
    runs = ws.RunsetSettings(
        groupby=[ws.Config("bench"), ws.Config("method")],
        order=[ws.Ordering(ws.Summary("score"), ascending=False)],
    )
    return ws.Workspace(
        entity=entity, project=project, name=NAME, sections=sections, runset_settings=runs
    )


def report(entity: str, project: str, benches: Sequence[str], runs: Any = None) -> Any:
    """The same plots with words around them; one runset per benchmark when ``runs`` makes them."""
    blocks: list[Any] = [wr.H1("Visual-token pruning"), wr.P(
        "Mirror of the result store: one run per finished cell. Runs whose data is mini are drawn "
        "stand-ins, not the benchmark."
    )]  # fmt: skip
    for bench in benches:
        panels = [_scatter(f"{bench}: score vs TFLOPs"), _bars(), _by_ratio(), _parallel()]
        runsets = [runs(bench) if runs else wr.Runset(name=bench)]
        blocks += [wr.H2(bench), wr.PanelGrid(runsets=runsets, panels=panels)]
    return wr.Report(entity=entity, project=project, title=NAME, blocks=blocks)


def spec(entity: str, project: str, benches: Sequence[str]) -> dict[str, Any]:
    """Both as plain data, no server asked. The library's own name for it is private: pinned."""
    models = {
        "workspace": workspace(entity, project, benches)._to_model(),
        "report": report(entity, project, benches)._to_model(),
    }
    return {
        name: model.model_dump(by_alias=True, exclude_none=True, mode="json")
        for name, model in models.items()
    }


def save(entity: str, project: str, benches: Sequence[str]) -> list[str]:
    """Create both on the server; their addresses."""

    def runs(bench: str) -> Any:
        return wr.Runset(
            entity=entity, project=project, name=bench, filters=f"Config('bench') == '{bench}'"
        )

    made = workspace(entity, project, benches)
    made.save()
    written = report(entity, project, benches, runs)
    written.save(draft=True)
    return [made.url, written.url]
