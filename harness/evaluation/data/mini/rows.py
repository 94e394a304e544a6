"""Shared parts of the mini benchmarks: tables, pictures and the search for askable questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator

from vtprune.harness.evaluation.data.mini import questions, world
from vtprune.harness.evaluation.data.mini.questions import Question
from vtprune.harness.evaluation.data.mini.world import Picture

MINI_VERSION = 2  # of the rows; older files are written again
_DRAW = 1  # seed material: pictures stay the same when only the questions change
_RANGE = 10_000_000  # seeds of one benchmark
NUMBERS = {"textvqa": 1, "gqa": 2, "vqav2": 3, "mme": 4, "pope": 5, "mmbench": 6, "chartqa": 7,
           "docvqa": 8, "scienceqa": 9, "vizwiz": 10, "seedbench": 11, "mmvet": 12,
           "ocrbench": 13, "ai2d": 14, "mmstar": 15, "realworldqa": 16, "infovqa": 17,
           "refcoco": 18, "refcoco_plus": 19, "refcocog": 20,
           "hallusion_bench": 21, "mmmu": 22}  # fmt: skip


@dataclass
class Table:
    """One split: its place, its rows and a function that gives the hub's feature types."""

    config: str
    split: str
    rows: list[dict[str, Any]]
    features: Callable[[], Any]

    def dataset(self):
        """The rows as `datasets.Dataset` with exact feature types."""
        from datasets import Dataset

        return Dataset.from_list(self.rows, features=self.features())


def cell(picture: Picture) -> dict[str, Any]:
    """A picture as a value of the Image feature."""
    return {"bytes": world.png(picture.image), "path": None}


def pictures(bench: str, seed: int) -> Iterator[tuple[int, Generator]]:
    """Endless (picture seed, generator) pairs, held out and different for each benchmark."""
    first = world.HELD_OUT_SEED + NUMBERS[bench] * _RANGE + (seed % 100) * 100_000
    for number in range(100_000):
        at = first + number
        yield at, np.random.default_rng([_DRAW, 77, at])


def collect(
    bench: str,
    seed: int,
    n: int,
    plan: tuple[tuple[str, tuple[str, ...]], ...],
    each: int = 1,
    balance: bool = True,
) -> list[tuple[Picture, list[Question]]]:
    """Pictures with up to `each` questions until there are `n` questions.

    `plan` is a cycle of (layout, askers). Yes and no are kept even when `balance` is set.
    """
    out: list[tuple[Picture, list[Question]]] = []
    total, turn, yes = 0, 0, 0
    for at, rng in pictures(bench, seed):
        layout, askers = plan[turn % len(plan)]
        picture, found = world.draw(at, layout), []
        for i in range(4 * each):
            if len(found) == each or total == n:
                break
            q = questions.ASKERS[askers[(turn + i) % len(askers)]](picture, rng)
            if q is None or q.text in {f.text for f in found}:
                continue
            lead = {"yes": yes, "no": -yes}.get(q.answer, 0)
            if balance and lead > 0:
                continue
            yes += {"yes": 1, "no": -1}.get(q.answer, 0)
            found.append(q)
            total += 1
        turn += 1
        if found:
            out.append((picture, found))
        if total == n:
            return out
    raise RuntimeError(f"{bench}: no more pictures")


def flat(found: list[tuple[Picture, list[Question]]]) -> Iterator[tuple[int, Picture, Question]]:
    """(running number, picture, question) of every question."""
    number = 0
    for picture, asked in found:
        for q in asked:
            yield number, picture, q
            number += 1
