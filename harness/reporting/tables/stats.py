"""Statistics of paired per-sample scores; numpy, for one test scipy, no torch.

Questions about one image are not independent, so everything resamples images, not questions. All
draws are seeded: the same journals give the same numbers.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import compress
from operator import eq
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

DRAWS = 5000
LEVEL = 0.95
ALPHA = 0.05
_BLOCK = 2_000_000  # numbers that are worked on at a time: 16 MB
_KEPT = 3  # sets of weights that are kept for the next statistic ...
_MOST = 50_000_000  # ... of so many numbers of two bytes: 300 MB at most
_MANY = 5000  # images, above which a fifth of the draws does

Array = NDArray[np.float64]
Counts = NDArray[np.uint16]


@dataclass(frozen=True)
class Statistic:
    """A score as a function of weighted sums over images.

    ``terms [images, t]`` are added up with one weight per image; ``value`` turns the sums
    ``[..., t]`` into the score. A mean is the terms (sum, count) and their quotient.
    """

    terms: Array
    value: Callable[[Array], Array]
    parts: tuple[Statistic, ...] = ()
    _sums: dict[tuple[int, int], Array] = field(default_factory=dict, compare=False, repr=False)

    def observed(self) -> float:
        return float(self.value(self.terms.sum(axis=0)))

    def resampled(self, draws: int, seed: int = 0) -> Array:
        """Weighted sums ``[draws, t]``. Statistics over equally many images see the same draws.

        They are kept: interval, tests and ratios of a score all ask for them.
        """
        if (draws, seed) not in self._sums:
            made = [part.resampled(draws, seed) for part in self.parts]
            self._sums[draws, seed] = (
                np.concatenate(made, axis=1) if made else _resampled(self.terms, draws, seed)
            )
        return self._sums[draws, seed]

    def values(self, draws: int, seed: int = 0) -> Array:
        """The score ``[draws]`` under each draw."""
        return self.value(self.resampled(draws, seed))


def draws_for(statistic: Statistic) -> int:
    """How often images are drawn; a fifth for very many images, whose interval is narrow."""
    return DRAWS if len(statistic.terms) <= _MANY else DRAWS // 5


def mean_of_statistics(parts: Sequence[Statistic]) -> Statistic:
    """The mean of several scores over the same images, e.g. of the seeds of one row."""
    if len(parts) == 1:
        return parts[0]
    edges = np.cumsum([part.terms.shape[1] for part in parts])[:-1]

    def value(sums: Array) -> Array:
        split = np.split(sums, edges, axis=-1)
        return np.mean([m.value(s) for m, s in zip(parts, split, strict=True)], axis=0)

    terms = np.concatenate([part.terms for part in parts], axis=1)
    return Statistic(terms, value, tuple(parts))


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
    n = int(clusters.max()) + 1
    names, columns = np.unique(np.asarray(categories), return_inverse=True)
    hits, asked = np.zeros((n, len(names))), np.zeros((n, len(names)))
    np.add.at(hits, (clusters, columns), np.asarray(right, dtype=float))
    np.add.at(asked, (clusters, columns), 1)
    pairs = (asked > 0).astype(float)
    terms = np.concatenate([hits, asked, (hits == asked) * pairs, pairs], axis=1)

    def value(sums: Array) -> Array:
        a, b, c, d = np.split(sums, 4, axis=-1)
        parts = np.divide(a, b, out=np.zeros_like(a), where=b > 0)
        parts = parts + np.divide(c, d, out=np.zeros_like(c), where=d > 0)
        return 100 * parts.sum(axis=-1)

    return Statistic(terms, value)


def _draw(rng: np.random.Generator, n: int, size: int) -> Counts:
    """How often each of ``n`` images is drawn, ``[size, n]``: ``n`` of them, with replacement.

    Counting drawn places is the multinomial distribution, and much faster than drawing from it
    image by image.
    """
    places = rng.integers(0, n, size=(size, n), dtype=np.int64)
    places += (n * np.arange(size))[:, None]
    return np.bincount(places.ravel(), minlength=size * n).astype(np.uint16).reshape(size, n)


def _drawn(n: int, draws: int, seed: int) -> Iterator[Counts]:
    rng, step = np.random.default_rng(seed), max(1, _BLOCK // n)
    for start in range(0, draws, step):
        yield _draw(rng, n, min(step, draws - start))


@lru_cache(maxsize=_KEPT)
def _whole(n: int, draws: int, seed: int) -> Counts:
    """All weights ``[draws, n]``; the cells of a table ask for the same ones."""
    weights = np.concatenate(list(_drawn(n, draws, seed)))
    weights.flags.writeable = False
    return weights


def _weights(n: int, draws: int, seed: int) -> Iterator[Counts]:
    """The weights ``[draws, n]`` in blocks; more than can be kept are drawn anew each time."""
    if n * draws > _MOST:
        yield from _drawn(n, draws, seed)
        return
    whole, step = _whole(n, draws, seed), max(1, _BLOCK // n)
    for start in range(0, draws, step):
        yield whole[start : start + step]


def _resampled(terms: Array, draws: int, seed: int) -> Array:
    """Weighted sums ``[draws, t]`` of ``terms [n, t]``."""
    blocks = _weights(len(terms), draws, seed)
    return np.concatenate([weights.astype(float) @ terms for weights in blocks])


def interval(
    statistic: Statistic, *, draws: int = DRAWS, level: float = LEVEL, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval, images resampled with replacement."""
    return Interval(statistic.observed(), *percentiles(statistic.values(draws, seed), level))


def percentiles(values: Array, level: float = LEVEL) -> tuple[float, float]:
    """Both ends of the percentile interval of resampled values."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mcnemar(first: Sequence[float], second: Sequence[float]) -> float:
    """Exact two-sided McNemar p-value of two rows of right/wrong scores."""
    a, b = np.asarray(first) > 0, np.asarray(second) > 0
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a + only_b == 0:
        return 1.0
    from scipy.stats import binomtest  # half a second, which a list of cells need not wait

    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue)


def paired_bootstrap(
    first: Statistic, second: Statistic, *, draws: int = DRAWS, level: float = LEVEL, seed: int = 0
) -> tuple[float, float, float, float]:
    """Difference first - second, its interval, and the two-sided p-value of no difference.

    The p-value is the smallest level at which the percentile interval leaves out zero; it is never
    below ``2 / (draws + 1)``.
    """
    difference = first.values(draws, seed) - second.values(draws, seed)
    low, high = percentiles(difference, level)
    below, above = int((difference <= 0).sum()), int((difference >= 0).sum())
    p = min(1.0, 2 * (min(below, above) + 1) / (draws + 1))
    return first.observed() - second.observed(), low, high, p


def mean_ratio(
    pairs: Sequence[tuple[str, Statistic, Statistic]], *, level: float = LEVEL, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile interval of the mean over benchmarks of score / unpruned score.

    Both scores of a benchmark are taken under the same draws of its images; benchmarks are drawn
    independently of each other. None where an unpruned score can be resampled to 0.

    Args:
        pairs: name of the benchmark (it fixes its draws), score, unpruned score. Both are over
            the same images.
    """
    draws = min(draws_for(pruned) for _, pruned, _ in pairs)
    total = np.zeros(draws)
    for name, pruned, full in pairs:
        below = full.values(draws_for(full), seed)[:draws]
        if not np.all(below > 0):
            return None
        ratio = pruned.values(draws_for(pruned), seed)[:draws] / below
        # All benchmarks see the same stream of draws: put in an order of its own for each.
        order = np.random.default_rng([seed, zlib.crc32(name.encode())]).permutation(draws)
        total += ratio[order]
    return percentiles(total / len(pairs), level)


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
    z = NormalDist().inv_cdf(1 - alpha / 2) + NormalDist().inv_cdf(power)
    return max(2, math.ceil((z / mean) ** 2 * variance))


def agreement(first: Sequence[str | None], second: Sequence[str | None]) -> float | None:
    """Share of samples with the same answer, ignoring case and outer space."""
    # Each answer is made plain once, however often it was given.
    plain = {text: text.strip().casefold() for text in {*first, *second} if text is not None}
    a, b = list(map(plain.get, first)), list(map(plain.get, second))
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} answers are no pairs")
    if None in a or None in b:
        there = [x is not None and y is not None for x, y in zip(a, b, strict=True)]
        a, b = list(compress(a, there)), list(compress(b, there))
    return sum(map(eq, a, b)) / len(a) if a else None
