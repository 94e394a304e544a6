"""Tasks that need sizes of images but neither a benchmark nor, mostly, a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vtprune.harness import settings


def run_dataless(config: dict[str, Any], *, sweep: bool = False) -> dict[str, Any]:
    """Run ``task=profile`` or ``task=time``, print what came out and store it.

    In a sweep a timing that is stored is not made again, unless ``force=true``.

    Raises:
        ConfigError: one line saying what is wrong with the request.
    """
    config, notes = settings.dataless(config, sweep=sweep)
    for note in notes:
        print(note, flush=True)
    results = Path(config["paths"]["results"])
    if config["task"] == "time":
        from vtprune.harness.timing import report, run_timing

        result = run_timing(config, reuse=sweep and not config.get("force"))
        if result.get("reused"):
            print(f"timed on {result['finished'][:16]} (force=true times it again)", flush=True)
        else:
            print(report.report(result), flush=True)
        return result
    from vtprune.harness import profile

    result = profile.run_profile(config)
    print(f"{profile.report(result)}\nstored: {profile.store(result, results)}", flush=True)
    return result
