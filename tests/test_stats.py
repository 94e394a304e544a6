"""Statistics against scipy and statsmodels on synthetic data, and their behaviour over many."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as reference

from vtprune.harness.reporting.tables import stats

contingency = pytest.importorskip(
    "statsmodels.stats.contingency_tables", reason="statsmodels comes with: make test"
)


def binary(n=400, gain=0.1, seed=0):
    rng = np.random.default_rng(seed)
    first = (rng.random(n) < 0.6).astype(float)
    flip = rng.random(n)
    second = np.where(first > 0, flip > gain, flip > 1 - gain / 4).astype(float)
    return 100 * first, 100 * second


def clustered(images=60, each=6, between=1.0, seed=0):
    rng = np.random.default_rng(seed)
    effect = between * rng.normal(size=images).repeat(each)
    return effect + rng.normal(size=images * each), np.arange(images).repeat(each)


@pytest.mark.parametrize("seed", range(5))
def test_mcnemar_equals_statsmodels(seed):
    a, b = binary(seed=seed)
    table = [
        [np.sum((a > 0) & (b > 0)), np.sum((a > 0) & (b == 0))],
        [np.sum((a == 0) & (b > 0)), np.sum((a == 0) & (b == 0))],
    ]
    expected = contingency.mcnemar(table, exact=True).pvalue
    assert stats.mcnemar(a, b) == pytest.approx(expected)


def test_mcnemar_of_equal_rows():
    a, _ = binary()
    assert stats.mcnemar(a, a) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 7])
def test_holm_equals_statsmodels(n):
    from statsmodels.stats.multitest import multipletests

    for seed in range(20):
        p = np.random.default_rng(seed).random(n) ** 3
        expected = multipletests(p, method="holm")[1]
        assert stats.holm(p) == pytest.approx(expected)


def test_the_interval_of_independent_samples_equals_scipys():
    values = np.random.default_rng(1).gamma(2.0, size=300)
    mine = stats.interval(stats.mean_of(values, np.arange(300)), draws=20000)
    theirs = reference.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20000, rng=0
    ).confidence_interval
    assert mine.value == pytest.approx(values.mean())
    assert mine.low == pytest.approx(theirs.low, abs=0.01)
    assert mine.high == pytest.approx(theirs.high, abs=0.01)


def test_the_interval_of_clustered_samples_equals_scipys_over_clusters():
    values, clusters = clustered()
    sums, counts = np.bincount(clusters, values), np.bincount(clusters)

    def ratio(s, c, axis=-1):
        return s.sum(axis=axis) / c.sum(axis=axis)

    theirs = reference.bootstrap(
        (sums, counts), ratio, paired=True, vectorized=True, method="percentile",
        n_resamples=20000, rng=0,
    ).confidence_interval  # fmt: skip
    mine = stats.interval(stats.mean_of(values, clusters), draws=20000)
    assert mine.low == pytest.approx(theirs.low, abs=0.015)
    assert mine.high == pytest.approx(theirs.high, abs=0.015)


def test_questions_about_one_image_widen_the_interval():
    values, clusters = clustered()
    apart = stats.interval(stats.mean_of(values, np.arange(len(values))))
    together = stats.interval(stats.mean_of(values, clusters))
    assert together.high - together.low > 1.6 * (apart.high - apart.low)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    covered = 0
    for seed in range(200):
        values, clusters = clustered(images=80, each=3, seed=seed)
        found = stats.interval(stats.mean_of(values, clusters), draws=500, seed=seed)
        covered += found.low <= 0 <= found.high
    assert 0.90 <= covered / 200 <= 0.985


def test_every_draw_takes_as_many_images_as_there_are_and_each_as_often():
    counts = stats._whole(50, 4000, 0).astype(float)
    assert (counts.sum(axis=1) == 50).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(50), abs=0.08)
    assert counts.var() == pytest.approx(1 - 1 / 50, rel=0.01)  # of a multinomial
    together = np.cov(counts[:, :25].sum(axis=1), counts[:, 25:].sum(axis=1))[0, 1]
    assert together == pytest.approx(-50 / 4, rel=0.1)


def test_weights_kept_from_an_earlier_statistic_are_those_of_a_new_draw(monkeypatch):
    for n, draws, seed in [(300, 500, 0), (300, 500, 1), (7, 500, 0)] * 2:
        fresh = np.concatenate(list(stats._drawn(n, draws, seed)))
        kept = np.concatenate(list(stats._weights(n, draws, seed)))
        assert (kept == fresh).all() and not stats._whole(n, draws, seed).flags.writeable
    assert (stats._whole(300, 500, 0) != stats._whole(300, 500, 1)).any()
    before = stats._whole.cache_info()
    assert before.maxsize * stats._MOST * 2 <= 300e6, "bytes that are kept at most"
    monkeypatch.setattr(stats, "_MOST", 10_000)
    assert len(np.concatenate(list(stats._weights(101, 100, 0)))) == 100
    assert stats._whole.cache_info() == before, "too many to keep"


def test_statistics_over_the_same_images_see_the_same_draws():
    rng = np.random.default_rng(0)
    clusters = np.arange(40).repeat(2)
    one = stats.mean_of(rng.random(80), clusters)
    shifted = stats.Statistic(np.add(one.terms, [1.0, 0]), one.value)
    assert shifted.values(500) - one.values(500) == pytest.approx(np.full(500, 0.5))
    seeds = stats.mean_of_statistics([one, shifted])
    assert seeds.values(500) == pytest.approx(one.values(500) + 0.25)
    assert seeds.observed() == pytest.approx(one.observed() + 0.25)
    assert stats.mean_of_statistics([one]) is one


def test_the_paired_bootstrap_agrees_with_the_t_test():
    rng = np.random.default_rng(3)
    base = rng.normal(size=250)
    for shift in (0.0, 0.1, 0.15):
        other = base + shift + 0.8 * rng.normal(size=250)
        alone = np.arange(250)
        found = stats.compare(other, base, alone)
        assert found.test == "paired bootstrap"
        assert found.p == pytest.approx(reference.ttest_rel(other, base).pvalue, abs=0.03)


def test_the_paired_bootstrap_rejects_a_true_null_at_its_level():
    rejected = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        clusters = np.arange(60).repeat(2)
        a, b = rng.normal(size=(2, 120)) + rng.normal(size=60).repeat(2)
        make = [stats.mean_of(x, clusters) for x in (a, b)]
        rejected += stats.paired_bootstrap(*make, draws=400, seed=seed)[3] < 0.05
    assert 0.02 <= rejected / 300 <= 0.10


def test_which_test_is_used():
    a, b = binary()
    alone, pairs = np.arange(400), np.arange(200).repeat(2)
    assert stats.compare(a, b, alone).test == "McNemar"
    assert stats.compare(a, b, pairs).test == "paired bootstrap"
    assert stats.compare(a * 0.3 + 7, b, alone).test == "paired bootstrap"
    assert stats.compare(a, b, alone).p == stats.mcnemar(a, b)


def test_the_needed_samples_equal_statsmodels():
    from statsmodels.stats.power import zt_ind_solve_power

    rng = np.random.default_rng(5)
    d = 0.2 + rng.normal(size=500)
    effect = d.mean() / d.std(ddof=1)
    expected = zt_ind_solve_power(effect_size=effect, alpha=0.05, power=0.8, ratio=0)
    assert stats.needed_samples(d) == pytest.approx(expected, abs=1)


def test_the_needed_samples_grow_with_questions_per_image():
    values, clusters = clustered(between=2.0)
    values = values + 1 - values.mean()
    alone = stats.needed_samples(values)
    assert stats.needed_samples(values, clusters) > 3 * alone
    assert stats.needed_samples(np.zeros(9)) is None


def test_needed_samples_really_give_that_power():
    rng = np.random.default_rng(6)
    need = stats.needed_samples(0.3 + rng.normal(size=100_000))
    found = [
        reference.ttest_1samp(0.3 + rng.normal(size=need), 0).pvalue < 0.05 for _ in range(400)
    ]
    assert 0.72 <= np.mean(found) <= 0.88


def test_mme_by_hand():
    # count: two images, three of four right, one pair complete; color: one image, both right
    right = [True, True, True, False, True, True]
    clusters = np.array([0, 0, 1, 1, 2, 2])
    categories = ["count"] * 4 + ["color"] * 2
    statistic = stats.mme(right, clusters, categories)
    assert statistic.observed() == pytest.approx((75 + 50) + (100 + 100))


def test_agreement():
    assert stats.agreement(["Yes ", "no", None], ["yes", "maybe", "x"]) == 0.5
    assert stats.agreement([None], ["x"]) is None and stats.agreement([None], [None]) is None
    assert stats.agreement([None, "a", "B"], [None, "a", None]) == 1
