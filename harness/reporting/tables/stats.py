"""Statistics of paired per-sample scores; numpy and scipy, no torch.

Questions about one image are not independent, so everything resamples images, not questions. All
draws are seeded: the same journals give the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

DRAWS = 5000
LEVEL = 0.95
ALPHA = 0.05
_CHUNK = 2_000_000  # numbers of one block of resampling weights: 16 MB
_KEPT = 4  # blocks of weights that are kept for the next statistic: 64 MB at most

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Statistic:
    """A score as a function of weighted sums over images.

    ``terms [images, t]`` are added up with one weight per image; ``value`` turns the sums
    ``[..., t]`` into the score. A mean is the terms (sum, count) and their quotient.
    """

    terms: Array
    value: Callable[[Array], Array]

    def observed(self) -> float:
        return float(self.value(self.terms.sum(axis=0)))


@dataclass(frozen=True)
class Interval:
    """A score with its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """Two rows on the same samples: difference, interval, p-value and the test it comes from."""

    difference: float
    low: float
    high: float
    p: float
    test: str
    n: int
    needed: int | None


def clusters_of(names: Sequence[object]) -> NDArray[np.int64]:
    """0 .. C-1 for each sample, equal for samples of one image."""
    seen: dict[object, int] = {}
    return np.array([seen.setdefault(name, len(seen)) for name in names], dtype=np.int64)


def mean_of(scores: Sequence[float], clusters: NDArray[np.int64], factor: float = 1.0) -> Statistic:
    """The plain mean of the scores, times ``factor``."""
    n = int(clusters.max()) + 1
    sums = np.bincount(clusters, weights=np.asarray(scores, dtype=float), minlength=n)
    counts = np.bincount(clusters, minlength=n).astype(float)
    terms = np.stack([sums, counts], axis=1)
    return Statistic(terms, lambda s: factor * s[..., 0] / s[..., 1])


def mme(
    right: Sequence[bool], clusters: NDArray[np.int64], categories: Sequence[str]
) -> Statistic:  # fmt: skip
    """MME: per category 100 x share of right answers + 100 x share of images all right."""
    n, names = int(clusters.max()) + 1, sorted(set(categories))
    hits, asked = np.zeros((n, len(names))), np.zeros((n, len(names)))
    for cluster, category, hit in zip(clusters, categories, right, strict=True):
        column = names.index(category)
        hits[cluster, column] += hit
        asked[cluster, column] += 1
    pairs = (asked > 0).astype(float)
    terms = np.concatenate([hits, asked, (hits == asked) * pairs, pairs], axis=1)

    def value(sums: Array) -> Array:
        a, b, c, d = np.split(sums, 4, axis=-1)
        parts = np.divide(a, b, out=np.zeros_like(a), where=b > 0)
        parts = parts + np.divide(c, d, out=np.zeros_like(c), where=d > 0)
        return 100 * parts.sum(axis=-1)

    return Statistic(terms, value)


def _draw(rng: np.random.Generator, n: int, size: int) -> Array:
    """How often each of ``n`` images is drawn: ``[size, n]``."""
    return rng.multinomial(n, np.full(n, 1 / n), size=size).astype(float)


@lru_cache(maxsize=_KEPT)
def _whole(n: int, draws: int, seed: int) -> Array:
    """All weights ``[draws, n]`` in one block; the cells of a table ask for the same ones."""
    weights = _draw(np.random.default_rng(seed), n, draws)
    weights.flags.writeable = False
    return weights


def _weights(n: int, draws: int, seed: int) -> Iterator[Array]:
    """The weights ``[draws, n]`` in blocks; more than one block is drawn anew each time."""
    step = max(1, _CHUNK // n)
    if draws <= step:
        yield _whole(n, draws, seed)
        return
    rng = np.random.default_rng(seed)
    for start in range(0, draws, step):
        yield _draw(rng, n, min(step, draws - start))


def _resampled(terms: Sequence[Array], draws: int, seed: int) -> list[Array]:
    """Weighted sums ``[draws, t]`` of each of ``terms``, all under the same draws of images."""
    out = [[] for _ in terms]
    for weights in _weights(len(terms[0]), draws, seed):
        for block, term in zip(out, terms, strict=True):
            block.append(weights @ term)
    return [np.concatenate(blocks) for blocks in out]


def interval(
    statistic: Statistic, *, draws: int = DRAWS, level: float = LEVEL, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval, images resampled with replacement."""
    (sums,) = _resampled([statistic.terms], draws, seed)
    low, high = np.quantile(statistic.value(sums), [(1 - level) / 2, (1 + level) / 2])
    return Interval(statistic.observed(), float(low), float(high))


def mcnemar(first: Sequence[float], second: Sequence[float]) -> float:
    """Exact two-sided McNemar p-value of two rows of right/wrong scores."""
    a, b = np.asarray(first) > 0, np.asarray(second) > 0
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)


def paired_bootstrap(
    first: Statistic, second: Statistic, *, draws: int = DRAWS, level: float = LEVEL, seed: int = 0
) -> tuple[float, float, float, float]:
    """Difference first - second, its interval, and the two-sided p-value of no difference.

    The p-value is the smallest level at which the percentile interval leaves out zero; it is never
    below ``2 / (draws + 1)``.
    """
    sums = _resampled([first.terms, second.terms], draws, seed)
    difference = first.value(sums[0]) - second.value(sums[1])
    low, high = np.quantile(difference, [(1 - level) / 2, (1 + level) / 2])
    below, above = int((difference <= 0).sum()), int((difference >= 0).sum())
    p = min(1.0, 2 * (min(below, above) + 1) / (draws + 1))
    return first.observed() - second.observed(), float(low), float(high), p


def compare(
    first: Sequence[float], second: Sequence[float], clusters: NDArray[np.int64]
) -> Paired:  # fmt: skip
    """Two rows of scores on the same samples, the score of each being its mean."""
    a, b = mean_of(first, clusters), mean_of(second, clusters)
    return compare_statistics(a, b, first, second, clusters)


def compare_statistics(
    a: Statistic,
    b: Statistic,
    first: Sequence[float] | Array,
    second: Sequence[float] | Array,
    clusters: NDArray[np.int64],
    *,
    plain_mean: bool = True,
    draws: int = DRAWS,
    seed: int = 0,
) -> Paired:
    """Two rows on the same samples, by any statistic of theirs.

    McNemar's exact test where every score is right or wrong, the statistic is their mean
    (``plain_mean``) and no two questions share an image; the paired bootstrap over images
    otherwise.
    """
    difference, low, high, p = paired_bootstrap(a, b, draws=draws, seed=seed)
    values = np.union1d(np.asarray(first, dtype=float), np.asarray(second, dtype=float))
    binary = len(values) <= 1 or (len(values) == 2 and values[0] == 0)
    test, alone = "paired bootstrap", int(clusters.max()) + 1 == len(clusters)
    if binary and alone and plain_mean:
        p, test = mcnemar(first, second), "McNemar"
    needed = needed_samples(np.subtract(first, second), clusters) if plain_mean else None
    return Paired(difference, low, high, p, test, len(clusters), needed)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values, in the order given."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    steps = p[order] * (len(p) - np.arange(len(p)))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted.tolist()


def needed_samples(
    differences: Sequence[float] | Array,
    clusters: NDArray[np.int64] | None = None,
    *,
    alpha: float = ALPHA,
    power: float = 0.8,
) -> int | None:
    """Samples at which the observed mean difference would be found with this power.

    ``((z_(1 - alpha/2) + z_power) s / d)^2``, times the design effect of several questions to an
    image. None if the rows do not differ at all.
    """
    d = np.asarray(differences, dtype=float)
    mean = float(d.mean())
    if mean == 0 or len(d) < 2:
        return None
    variance = float(d.var(ddof=1))
    if clusters is not None and (n := int(clusters.max()) + 1) < len(d) and n > 1:
        sums = np.bincount(clusters, weights=d - mean, minlength=n)
        variance = float((sums**2).sum() / len(d) * n / (n - 1))
    z = stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)
    return max(2, math.ceil((z / mean) ** 2 * variance))


def agreement(first: Sequence[str | None], second: Sequence[str | None]) -> float | None:
    """Share of samples with the same answer, ignoring case and outer space."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not pairs:
        return None
    return sum(a.strip().casefold() == b.strip().casefold() for a, b in pairs) / len(pairs)
