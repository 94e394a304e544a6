"""One composed config, one task: a cell, its score, a calibration, a profile or a timing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from vtprune.harness.cell import prepare, publish
from vtprune.harness.request import check, several
from vtprune.harness.request.request import Request


def run_part(part: several.Part, *, sweep: bool) -> dict[str, Any] | None:
    """Run one cell (or other task) of a composed config; its stored result."""
    request = part.request()
    if request.task in check.DATALESS_TASKS:
        return run_dataless(request, sweep=sweep)
    if request.task == "score":
        from vtprune.harness.cell.score import run_score

        return run_score(request, sweep=sweep)
    prepared = prepare.prepare(request, sweep=sweep)
    if request.task == "calibrate":
        return _calibrate(prepared)
    from vtprune.harness.cell.run import run_cell

    publish.check(request.logger)
    result = run_cell(prepared)
    if result is not None:  # None: another process of the group tells
        problem = publish.publish(request.logger, Path(result["directory"]))
        if problem:
            print(f"note: {problem}", file=sys.stderr, flush=True)
    return result


def _calibrate(prepared: prepare.Prepared) -> dict[str, Any]:
    from vtprune.harness.cell.calibrate import report, run_calibration

    artefact = run_calibration(prepared)
    print(report(artefact), flush=True)
    return artefact


def run_dataless(asked: Request, *, sweep: bool = False) -> dict[str, Any]:
    """Run ``task=profile`` or ``task=time``, print what came out and store it.

    In a sweep a timing that is stored is not made again, unless ``force=true``.

    Raises:
        ConfigError: one line saying what is wrong with the request.
    """
    request, notes = prepare.dataless(asked, sweep=sweep)
    for note in notes:
        print(note, flush=True)
    if request.task == "time":
        from vtprune.harness.cost.timing import report, run_timing

        result = run_timing(request, reuse=sweep and not request.force)
        if result.get("reused"):
            print(f"timed on {result['finished'][:16]} (force=true times it again)", flush=True)
        else:
            print(report.report(result), flush=True)
        return result
    from vtprune.harness.cost import profile

    result = profile.run_profile(request)
    stored = profile.store(result, request.results)
    print(f"{profile.report(result)}\nstored: {stored}", flush=True)
    return result
