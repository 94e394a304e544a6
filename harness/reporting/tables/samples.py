"""Per-sample records of a cell as statistics need them, read from its journal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vtprune.harness.reporting.tables import stats
from vtprune.harness.store import index

# MME's score is over these only; the other four categories are its cognition part.
MME_PERCEPTION = frozenset(
    ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark",
     "artwork", "OCR")
)  # fmt: skip
_TOLERANCE = 0.011  # of a recomputed score, in its unit
_FACTORS = (1.0, 10.0, 100.0, 1000.0)  # e.g. OCRBench counts points of 1000


@dataclass(frozen=True)
class Samples:
    """Answered samples of one cell in the order of their rows."""

    bench: str
    score: float
    ids: tuple[int, ...]
    scores: np.ndarray
    images: tuple[Any, ...]
    answers: tuple[str | None, ...]
    categories: tuple[str, ...]

    @cached_property
    def clusters(self) -> np.ndarray:
        """0 .. C-1 per sample; equal for questions about one image."""
        return _clusters(self.images)

    @cached_property
    def statistic(self) -> stats.Statistic | None:
        """The cell's score as a function of its samples; None if they do not add up to it."""
        return self._scored(slice(None))

    def shared(self, ids: frozenset[int]) -> stats.Statistic | None:
        """The score over the samples of these rows alone; None as for :attr:`statistic`."""
        if len(ids) == len(self.ids):
            return self.statistic
        return self._scored(np.array([doc in ids for doc in self.ids]))

    def _scored(self, rows: slice | np.ndarray) -> stats.Statistic | None:
        factor = self._factor
        if factor is None or not len(self.scores[rows]):
            return None
        clusters = stats.clusters_of(self.clusters[rows].tolist())
        if self.bench == "mme":
            categories = np.asarray(self.categories)[rows]
            return stats.mme(self.scores[rows] > 0, clusters, categories)
        return stats.mean_of(self.scores[rows], clusters, factor)

    @cached_property
    def _factor(self) -> float | None:
        """What a sample's score counts for; None if the samples do not add up to the score."""
        if not len(self.ids):
            return None
        if self.bench == "mme":
            made = stats.mme(self.scores > 0, self.clusters, self.categories)
            return 1.0 if self._is_score(made.observed()) else None
        mean = float(self.scores.mean())
        return next((f for f in _FACTORS if self._is_score(f * mean)), None)

    def _is_score(self, value: float) -> bool:
        return math.isclose(value, self.score, abs_tol=_TOLERANCE)


@lru_cache(maxsize=64)
def _clusters(images: tuple[Any, ...]) -> np.ndarray:
    return stats.clusters_of(images)


@lru_cache(maxsize=64)
def _one(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The first of equal tuples: the cells of a benchmark have the same rows and images."""
    return values


@lru_cache(maxsize=1024)
def load(folder: Path, bench: str, score: float, _stamp: int = 0) -> Samples:
    """The scored samples of a finished cell. ``_stamp`` is its journal's time of change."""
    latest = index.entries(folder)
    entries = [latest[doc] for doc in sorted(latest)]
    counted = [e for e in entries if not e["error"] and e.get("score") is not None]
    if bench == "mme":
        counted = [e for e in counted if _category(e) in MME_PERCEPTION]
    return Samples(
        bench,
        score,
        _one(tuple(e["doc_id"] for e in counted)),
        np.array([e["score"] for e in counted], dtype=float),
        _one(tuple(_image(e) for e in counted)),
        tuple(e["answer"] for e in counted),
        _one(tuple(_category(e) for e in counted)),
    )


def of(result: Mapping[str, Any]) -> Samples:
    """The samples behind a stored result."""
    folder = Path(result["directory"])
    stamp = index.changed(folder)
    return load(folder, result["bench"], result["score"], stamp)


def _image(entry: Mapping[str, Any]) -> Any:
    name = entry.get("image_id")
    return entry["doc_id"] if name is None else str(name)


def _category(entry: Mapping[str, Any]) -> str:
    return str(entry.get("question_id", "")).partition("/")[0]


def same_questions(cells: Sequence[Samples]) -> bool:
    """True if all cells answered the same rows of the same images."""
    first = cells[0]
    return all(c.ids == first.ids and c.images == first.images for c in cells)


def mean_statistic(cells: Sequence[Samples]) -> stats.Statistic | None:
    """The mean score of several runs on the same samples (the seeds of one row)."""
    made = [cell.statistic for cell in cells]
    if any(m is None for m in made) or not same_questions(cells):
        return None
    return stats.mean_of_statistics([m for m in made if m is not None])


def paired(
    pruned: Sequence[Samples], full: Samples
) -> tuple[stats.Statistic, stats.Statistic, int] | None:
    """A row (one run or several seeds) and the unpruned run over the samples that all answered.

    Returns:
        both statistics and the number of samples; None if there is no such sample, a row of one
        name is about different images, or samples do not add up to their score.
    """
    ids = frozenset(full.ids)
    if not same_questions([full, *pruned]):
        ids = ids.intersection(*(cell.ids for cell in pruned))
        about = dict(zip(full.ids, full.images, strict=True))
        for cell in pruned:
            pairs = zip(cell.ids, cell.images, strict=True)
            if any(doc in ids and about[doc] != image for doc, image in pairs):
                return None
    made, base = [cell.shared(ids) for cell in pruned], full.shared(ids)
    if base is None or any(m is None for m in made):
        return None
    return stats.mean_of_statistics([m for m in made if m is not None]), base, len(ids)


def compare(first: Sequence[Samples], second: Sequence[Samples]) -> stats.Paired | None:
    """Test of two rows, each one run or several seeds; None if they cannot be compared."""
    if not same_questions([*first, *second]):
        return None
    a, b = mean_statistic(first), mean_statistic(second)
    if a is None or b is None:
        return None
    draws = stats.draws_for(a)
    scores = [np.mean([c.scores for c in cells], axis=0) for cells in (first, second)]
    return stats.compare_statistics(
        a, b, *scores, first[0].clusters, plain_mean=first[0].bench != "mme", draws=draws
    )
