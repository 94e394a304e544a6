"""What an engine costs besides the model: time per sample, fixed time per run, process start-up.

    python benchmarks/engine_overhead.py                # both engines, start-up included
    python benchmarks/engine_overhead.py --bench gqa --engine lmms_eval --no-startup

The answers come from a constant, but every prompt is built, every picture decoded, every sample
journalled and scored. Two sizes of run give the slope (per sample) and the rest (per run).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vtprune.harness.evaluation import engines  # noqa: E402
from vtprune.harness.evaluation.data import source  # noqa: E402
from vtprune.harness.evaluation.engines.base import Answer, Job, Question  # noqa: E402
from vtprune.harness.request import benches, known  # noqa: E402
from vtprune.harness.request.request import Data, Request  # noqa: E402
from vtprune.harness.store.journal import Journal  # noqa: E402

SMALL, LARGE = 16, 96
WANTED_MS = 5.0
STARTUP = {
    "python, nothing imported": ["-c", "pass"],
    "run.py --help": ["run.py", "--help"],
    "run.py, refused request": ["run.py", "method=gprun"],
    "import torch": ["-c", "import torch"],
    "import the lmms-eval engine": ["-c", "import vtprune.harness.evaluation.engines.lmms_eval"],
    "import the VLMEvalKit engine": [
        "-c", "from vtprune.harness.evaluation.engines import vlm_import; vlm_import.load()",
    ],
}  # fmt: skip


class Constant:
    """Looks at every picture, as a model would have to, and says one word."""

    def answer(self, batch: Sequence[Question]) -> list[Answer]:
        for question in batch:
            question.images()
        return [Answer("yes") for _ in batch]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bench", nargs="*", default=["textvqa", "gqa", "mme", "mmbench_en"])
    parser.add_argument("--engine", nargs="*", default=["lmms_eval", "vlmevalkit"])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--no-startup", action="store_true")
    options = parser.parse_args()
    print("| engine | benchmark | per sample | per run |")
    print("| --- | --- | --- | --- |")
    worst = 0.0
    for engine in options.engine:
        for bench in options.bench:
            slope, rest = measure(bench, engine, options.repeat)
            worst = max(worst, slope)
            print(f"| {engine} | {bench} | {slope:.2f} ms | {rest:.0f} ms |", flush=True)
    verdict = "within" if worst < WANTED_MS else "NOT within"
    print(f"\nworst {worst:.2f} ms per sample: {verdict} the wanted {WANTED_MS:g} ms\n")
    if not options.no_startup:
        print("| process | wall |\n| --- | --- |")
        for name, arguments in STARTUP.items():
            print(f"| {name} | {startup(arguments, options.repeat):.2f} s |", flush=True)
    return 0


def measure(bench: str, engine: str, repeat: int) -> tuple[float, float]:
    """Milliseconds per sample and per run, medians over repetitions after a warm-up."""
    config = known.entries("bench", bench)
    options = known.entries("engine", engine)
    if config is None or options is None:
        raise SystemExit(f"error: no bench={bench} or no engine={engine}")
    asked = benches.seen_by_engine(Request({"bench": config, "engine": options, "model": {}}))
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        times: dict[int, list[float]] = {SMALL: [], LARGE: []}
        rows: dict[int, int] = {}
        for turn in range(repeat + 1):
            for samples in (SMALL, LARGE):
                seconds, rows[samples] = once(asked, samples, cache)
                if turn:  # the first one imports, opens and caches
                    times[samples].append(seconds)
    small, large = (statistics.median(times[n]) for n in (SMALL, LARGE))
    slope = (large - small) / (rows[LARGE] - rows[SMALL])
    return 1000 * slope, 1000 * (small - slope * rows[SMALL])


def once(asked: Request, samples: int, cache: Path) -> tuple[float, int]:
    """Wall time of one run, and how many rows it asked (rotations count)."""
    drawn = Data("mini", 0, samples)
    data = source.prepare(drawn, asked.bench, asked.entry, cache)
    with tempfile.TemporaryDirectory() as name, quiet():
        folder = Path(name)
        with Journal(folder / "samples.jsonl") as journal:
            job = Job(asked.bench, asked.entry, data, 8, journal, {}, folder / "engine")
            start = time.perf_counter()
            outcome = engines.get(asked.engine).run(job, Constant())
            return time.perf_counter() - start, len(outcome.samples)


def startup(arguments: list[str], repeat: int) -> float:
    """Median wall time of a process."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=False)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the engines' own output out of the table."""
    nowhere = io.StringIO()
    logging.disable(logging.CRITICAL)
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield
    logging.disable(logging.NOTSET)


if __name__ == "__main__":
    sys.exit(main())
