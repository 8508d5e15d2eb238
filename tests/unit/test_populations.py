import numpy as np
import pandas as pd
import pytest
import scipy.stats

from lib.stats import populations
from lib.stats.metrics import Estimate


def population(n=3000, seed=0):
    """Frequencies over four decades; frequent latents score worse, with noise."""
    rng = np.random.default_rng(seed)
    frequency = 10 ** rng.uniform(-4.5, -0.3, n)
    score = np.clip(0.1 - 0.15 * np.log10(frequency) + 0.15 * rng.standard_normal(n), -1, 1)
    return frequency, score


def estimate(frequency, score, sample, weighted):
    drawn = pd.Series(score[sample.latents], sample.latents)
    return populations.estimate(drawn, sample.stratum, frequency, weighted)


@pytest.mark.parametrize("weighted", [False, True])
def test_means_are_unbiased_and_their_intervals_cover_while_the_plain_mean_of_the_sample_is_far_off(weighted):
    frequency, score = population()
    truth = np.average(score, weights=frequency if weighted else None)
    stratified, plain = [], []
    for seed in range(400):
        sample = populations.draw(frequency, np.ones(3000, bool), 100, np.random.default_rng(seed))
        assert len(sample.latents) == len(set(sample.latents)) == 100
        stratified.append(estimate(frequency, score, sample, weighted))
        plain.append(score[sample.latents].mean())
    values = np.array([mean.value for mean in stratified])
    standard_error = values.std(ddof=1) / 20
    assert abs(values.mean() - truth) < 3.5 * standard_error
    assert abs(np.mean(plain) - truth) > 10 * standard_error
    assert np.mean([mean.low <= truth <= mean.high for mean in stratified]) > 0.9
    assert np.mean([mean.high - mean.low for mean in stratified]) < 0.12


def test_an_equal_draw_serves_the_weighted_mean_worse():
    frequency, score = population()
    stratified, equal = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        sample = populations.draw(frequency, np.ones(3000, bool), 100, rng)
        stratified.append(estimate(frequency, score, sample, True).value)
        chosen = rng.choice(3000, 100, replace=False)
        equal.append(np.average(score[chosen], weights=frequency[chosen]))
    assert np.std(stratified) < 0.6 * np.std(equal)


def test_all_latents_drawn_give_the_exact_means_and_no_width():
    frequency, score = population(60)
    eligible = np.arange(60) != 7
    sample = populations.draw(frequency, eligible, 1000, np.random.default_rng(0))
    assert sample.latents.tolist() == np.flatnonzero(eligible).tolist() and sample.stratum[7] == -1
    for weighted in (False, True):
        mean = estimate(frequency, score, sample, weighted)
        weights = frequency[eligible] if weighted else None
        assert mean.value == pytest.approx(np.average(score[eligible], weights=weights))
        assert mean.high - mean.low == pytest.approx(0, abs=1e-9)


def test_by_hand_two_strata():
    stratum, frequency = np.array([0, 0, 0, 0, 1, 1]), np.array([0.1, 0.1, 0.1, 0.1, 0.2, 0.4])
    scores = pd.Series([0.2, 0.4, 0.5, 0.9], [0, 1, 4, 5])
    uniform, weighted = (populations.estimate(scores, stratum, frequency, w) for w in (False, True))
    assert uniform.value == pytest.approx((4 * 0.3 + 2 * 0.7) / 6)
    assert weighted.value == pytest.approx((4 * 0.1 * 0.3 + 0.2 * 0.5 + 0.4 * 0.9) / 1.0)
    # N² (1 − n/N) s² / n of the first stratum, over 6²; the second is known whole; t with 1 + 1 degrees: 4.3027
    assert uniform.high - uniform.value == pytest.approx(4.3027 * np.sqrt(16 * 0.5 * 0.02 / 2 / 36), rel=1e-4)


def test_strata_without_scores_join_their_neighbours():
    stratum, frequency = np.repeat([0, 1, 2, 3], 4), np.ones(16) / 16
    mean = populations.estimate(pd.Series([0.1, 0.3, 0.6], [4, 5, 12]), stratum, frequency, False)
    assert mean.value == pytest.approx(np.mean([0.1, 0.3, 0.6]))
    assert populations.estimate(pd.Series([0.4], [9]), stratum, frequency, False) == Estimate(0.4, None, None, 1, 1)


def test_without_a_score_there_is_no_mean():
    none = populations.estimate(pd.Series([], dtype=float), np.zeros(4, int), np.ones(4) / 4, True)
    assert none == populations.difference(none, Estimate(0.5, 0.2, 0.8, 10, 10)) == Estimate(None, None, None, 0, 0)


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="0 latents"):
        populations.draw(np.ones(5), np.zeros(5, bool), 10, np.random.default_rng(0))


def test_difference_of_independent_means():
    difference = populations.difference(Estimate(0.5, 0.2, 0.8, 10, 10), Estimate(0.1, -0.3, 0.5, 20, 20))
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.4, -0.1, 0.9))
    assert populations.difference(Estimate(0.5, None, None, 1, 1), Estimate(0.1, 0, 1, 2, 2)).low is None


def drop(frequency, score, sample, rng):
    """The uniform minus the weighted mean, and replicates of it."""
    stand_for = populations.resampled(sample.latents, sample.stratum, 999, rng)
    shares = 1 / len(frequency) - frequency[sample.latents] / frequency.sum()
    return stand_for @ (shares * score[sample.latents])


def test_replicates_cover_as_often_as_they_say():
    frequency, score = population()
    truth = score.mean() - np.average(score, weights=frequency)
    covered, values = 0, []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        drawn = drop(frequency, score, populations.draw(frequency, np.ones(3000, bool), 100, rng), rng)
        low, high = np.quantile(drawn[1:], [0.025, 0.975])
        covered += low <= truth <= high
        values.append(drawn[0])
    assert 0.93 <= covered / 400 <= 0.98
    assert abs(np.mean(values) - truth) < 3.5 * np.std(values) / 20


def test_replicates_have_the_mean_and_the_variance_of_the_estimate():
    frequency, score = population(300)
    sample = populations.draw(frequency, np.ones(300, bool), 60, np.random.default_rng(0))
    known = estimate(frequency, score, sample, False)
    drawn = populations.resampled(sample.latents, sample.stratum, 20_000, np.random.default_rng(1))
    values = drawn @ score[sample.latents] / 300
    degrees = 60 - len(np.unique(sample.stratum))
    assert values[0] == pytest.approx(known.value) == pytest.approx(values[1:].mean(), abs=1e-3)
    spread = (known.high - known.low) / 2 / scipy.stats.t.ppf(0.975, degrees)
    assert values[1:].std() == pytest.approx(spread, rel=0.03)
    whole = populations.resampled(np.arange(300), sample.stratum, 5, np.random.default_rng(1))
    np.testing.assert_array_equal(whole, 1.0)  # all are known, so that nothing is left to chance


def test_partners_are_others_of_about_the_same_frequency():
    frequency = np.random.default_rng(0).permutation(100) / 100
    latents = np.arange(0, 100, 2)
    partners = populations.partners(latents, frequency, 2, np.random.default_rng(1))
    others = [other for of_latent in partners.values() for other in of_latent]
    assert sorted(partners) == latents.tolist() and sorted(others) == np.repeat(latents, 2).tolist()
    assert all(len({latent, *of_latent}) == 3 for latent, of_latent in partners.items())
    places = np.argsort(np.argsort(frequency[latents]))
    place_of = dict(zip(latents.tolist(), places.tolist(), strict=True))
    for latent, of_latent in partners.items():
        assert {place_of[other] // 5 for other in of_latent} == {place_of[latent] // 5}
    assert populations.partners(latents[:2], frequency, 4, np.random.default_rng(1)) == {0: [2], 2: [0]}
    assert populations.partners(latents[:1], frequency, 4, np.random.default_rng(1)) == {}
