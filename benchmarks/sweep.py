"""A mini Table 1 of 13 cells three ways: 13 processes, one multirun, one with shared features.

    python benchmarks/sweep.py [--limit 40]

All three in one run, one after another; answers must be equal. Printed: seconds, CPU seconds (they
do not depend on what else the machine does), both as ratios to separate processes, where the time
went and where it was saved: the model's own work, the engine and the loading of the model within
the cells, and what lies outside of them, which is starting Python and importing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("random", "gprune", "divprune", "visionzip")
RATIOS = ("0.5", "0.7", "0.9")
CELLS = [("none", "0"), *((m, r) for m in METHODS for r in RATIOS)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=40, help="samples per cell")
    options = parser.parse_args()
    common = [f"bench.limit={options.limit}", "progress=false"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _run(folder / "warm", [*common, "method=none"])  # data drawn, files in memory: for all
        ways = {
            "13 processes": lambda out: [_run(out, [*common, *_cell(*c)]) for c in CELLS],
            "one multirun": lambda out: _run(out, [*_multirun(), *common, _share(False)]),
            "... sharing": lambda out: _run(out, [*_multirun(), *common, _share(True)]),
        }
        rows = {name: _timed(folder / str(n), way) for n, (name, way) in enumerate(ways.items())}
        answers = [_answers(folder / str(n)) for n in range(3)]
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    _show(rows)
    assert len(answers[0]) == len(CELLS), f"{len(answers[0])} cells"
    same = answers[0] == answers[1] == answers[2]
    print("answers: " + ("equal token for token" if same else "DIFFERENT"))
    return 0 if same else 1


def _cell(method: str, ratio: str) -> list[str]:
    return [f"method={method}"] + ([f"ratio={ratio}"] if method != "none" else [])


def _multirun() -> list[str]:
    return ["-m", f"method=none,{','.join(METHODS)}", f"ratio={','.join(RATIOS)}"]


def _share(on: bool) -> str:
    return f"sweep.share_vision={str(on).lower()}"


def _run(out: Path, arguments: list[str]) -> None:
    # The drawn data lie in one place, so that no way has to draw them.
    out.mkdir(parents=True, exist_ok=True)
    cache = out.parent / "cache"
    cache.mkdir(exist_ok=True)
    if not (out / ".cache").exists():
        (out / ".cache").symlink_to(cache)
    command = [sys.executable, ROOT / "run.py", *arguments, f"paths.results={out}"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, encoding="utf-8"
    )
    if done.returncode:
        raise SystemExit(done.stderr)


def _timed(out: Path, way) -> dict[str, float]:
    start, cpu = time.perf_counter(), _cpu()
    way(out)
    seconds, cpu = time.perf_counter() - start, _cpu() - cpu
    results = [
        json.loads(f.read_text(encoding="utf-8")) for f in out.glob("runs/*/*/*/result.json")
    ]
    work = [r["counters"]["accuracy_pass"]["latency_s"] * r["n_samples"] for r in results]
    cells = sum(r["wall_s"] for r in results)
    return {
        "seconds": seconds,
        "CPU": cpu,
        "model": sum(work),
        "engine, loading": cells - sum(work),
        "starting": seconds - cells,
        "shared calls": sum(r["shared_vision"] for r in results),
    }


def _cpu() -> float:
    """CPU seconds of the processes that have ended so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _answers(out: Path) -> dict[str, list]:
    found = {}
    for file in out.glob("runs/*/*/*/samples.jsonl"):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        found[file.parent.name] = [(r["doc_id"], r["answer"], r["generated_tokens"]) for r in rows]
    return found


def _show(rows: dict[str, dict[str, float]]) -> None:
    first = rows["13 processes"]["seconds"]
    base = rows["13 processes"]
    parts = ["model", "engine, loading", "starting"]
    names = ["seconds", "CPU", *parts, "shared calls"]
    ratios = ["faster", "faster (CPU)"]
    print(f"{'':>14}" + "".join(f"{name:>16}" for name in [*names, *ratios]))
    for name, row in rows.items():
        shown = "".join(f"{row[n]:16.1f}" for n in names)
        print(f"{name:>14}{shown}{first / row['seconds']:15.2f}x{base['CPU'] / row['CPU']:15.2f}x")
    for name, before in (("one multirun", "13 processes"), ("... sharing", "one multirun")):
        saved = {part: rows[before][part] - rows[name][part] for part in parts}
        told = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in saved.items())
        print(f"saved by {name}: {sum(saved.values()):.1f} s ({told})")


if __name__ == "__main__":
    sys.exit(main())
