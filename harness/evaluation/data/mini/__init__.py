"""Seeded miniature stand-ins for the benchmarks, in the column layout of the hub data sets.

`build` writes `<root>/<org>/<dataset>/<config or data>/<split>-00000-of-00001.parquet`. Pictures
come from the held-out part of the drawn world, one seed range a benchmark. They carry the names of
the benchmarks because the engines look for those names; they are not the benchmarks.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from vtprune.harness.evaluation.data.mini import choice, grounding, open_ended, yes_no
from vtprune.harness.evaluation.data.mini.rows import MINI_VERSION, Table

# benchmark -> (rows by default, generator)
GENERATORS: dict[str, tuple[int, Callable[[int, int], list[Table]]]] = {
    "textvqa": (200, open_ended.textvqa),
    "gqa": (128, open_ended.gqa),
    "vqav2": (128, open_ended.vqav2),
    "mme": (128, yes_no.mme),
    "pope": (180, yes_no.pope),
    "mmbench_en": (96, choice.mmbench_en),
    "mmbench_cn": (96, choice.mmbench_cn),
    "chartqa": (128, open_ended.chartqa),
    "docvqa": (96, open_ended.docvqa),
    "scienceqa": (96, choice.scienceqa),
    "vizwiz": (128, open_ended.vizwiz),
    "seedbench": (96, choice.seedbench),
    "mmvet": (64, open_ended.mmvet),
    "ocrbench": (128, open_ended.ocrbench),
    "ai2d": (96, choice.ai2d),
    "mmstar": (96, choice.mmstar),
    "realworldqa": (96, choice.realworldqa),
    "infovqa": (96, open_ended.infovqa),
    "hallusion_bench": (96, yes_no.hallusion_bench),
    "mmmu": (96, choice.mmmu),
    "refcoco": (64, grounding.refcoco),
    "refcoco_plus": (64, grounding.refcoco_plus),
    "refcocog": (64, grounding.refcocog),
}
BENCHES: tuple[str, ...] = tuple(GENERATORS)


def folder(bench: str, root: Path) -> Path:
    """The data set's folder under `root`, as the engine's task file names it."""
    return Path(root) / REPOSITORIES[bench]


REPOSITORIES = {
    "textvqa": "lmms-lab-encoder/textvqa", "gqa": "lmms-lab-encoder/GQA",
    "vqav2": "lmms-lab-encoder/VQAv2", "mme": "lmms-lab-encoder/MME",
    "pope": "lmms-lab-encoder/POPE", "mmbench_en": "lmms-lab-encoder/MMBench",
    "mmbench_cn": "lmms-lab-encoder/MMBench", "chartqa": "lmms-lab-encoder/ChartQA",
    "docvqa": "lmms-lab-encoder/DocVQA", "scienceqa": "lmms-lab-encoder/ScienceQA",
    "vizwiz": "lmms-lab-encoder/VizWiz-VQA", "seedbench": "lmms-lab-encoder/SEED-Bench",
    "mmvet": "lmms-lab-encoder/MMVet", "ocrbench": "echo840/OCRBench",
    "ai2d": "lmms-lab-encoder/ai2d", "mmstar": "Lin-Chen/MMStar",
    "realworldqa": "lmms-lab-encoder/RealWorldQA", "infovqa": "lmms-lab-encoder/DocVQA",
    "hallusion_bench": "lmms-lab-encoder/HallusionBench", "mmmu": "lmms-lab-encoder/MMMU",
    "refcoco": "lmms-lab-encoder/RefCOCO", "refcoco_plus": "lmms-lab-encoder/RefCOCOplus",
    "refcocog": "lmms-lab-encoder/RefCOCOg",
}  # fmt: skip


def tables(bench: str, seed: int = 0, n: int | None = None) -> list[Table]:
    """The rows of a benchmark without writing them. Raises ValueError for an unknown name."""
    if bench not in GENERATORS:
        raise ValueError(f"no mini benchmark {bench!r}; known: {', '.join(BENCHES)}")
    rows, make = GENERATORS[bench]
    return make(seed, rows if n is None else n)


def build(bench: str, root: Path, seed: int = 0, n: int | None = None) -> Path:
    """Write a benchmark under `root` unless the same one is there; returns its folder.

    Each file is written beside its place and renamed, so a reader never sees half a file. The stamp
    goes in last: without it, or with another version, seed or size, everything is written again.
    """
    if bench not in GENERATORS:
        raise ValueError(f"no mini benchmark {bench!r}; known: {', '.join(BENCHES)}")
    base = folder(bench, root)
    stamp = base / f".{bench}.json"
    count = GENERATORS[bench][0] if n is None else n
    want = {"bench": bench, "version": MINI_VERSION, "seed": seed, "n": count}
    if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == want:
        return base
    stamp.unlink(missing_ok=True)
    base.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=base, prefix=".write-"))
    try:
        for table in tables(bench, seed, n):
            target = base / table.config / f"{table.split}-00000-of-00001.parquet"
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = scratch / f"{table.config}-{table.split}.parquet"
            table.dataset().to_parquet(str(temporary))
            os.replace(temporary, target)
        temporary = scratch / "stamp"
        temporary.write_text(json.dumps(want), encoding="utf-8")
        os.replace(temporary, stamp)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return base
