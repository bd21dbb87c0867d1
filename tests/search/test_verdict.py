from math import exp, log, sqrt

import numpy as np
import pytest
from scipy.stats import binomtest, t

from autotune.search.verdict import POWER, judge, percent, pooled_variance


def simulate(rng, n_blocks, gains, sigma=0.02, block_sigma=0.05):
    blocks = []
    for _ in range(n_blocks):
        shift = rng.normal(0.0, block_sigma)
        blocks.append({n: exp(log(100.0 / g) + shift + rng.normal(0.0, sigma)) for n, g in gains.items()})
    return blocks, [[exp(log(100.0) + rng.normal(0.0, sigma)) for _ in range(3)]]


def test_variance_by_hand():
    blocks = [{"baseline": exp(1.0), "best": exp(0.5)}, {"baseline": exp(1.2), "best": exp(0.9)}]
    # differences 0.5 and 0.3: residual SS = (0.2)^2 / 4 with one degree of freedom
    variance, df = pooled_variance(blocks, [[exp(0.0), exp(0.2)], [7.0]])
    assert df == 2
    assert variance == pytest.approx((0.2**2 / 4 + 0.2**2 / 2) / 2)


def test_interval_by_hand():
    blocks = [{"baseline": exp(1.0), "best": exp(0.5)}, {"baseline": exp(1.2), "best": exp(0.9)}]
    found = judge(blocks, [[exp(0.0), exp(0.2)]])
    se = sqrt((0.2**2 / 4 + 0.2**2 / 2) / 2 * 2 / 2)
    ratio = found.ratios["best"]
    assert ratio.speedup == pytest.approx(exp(0.4))
    assert ratio.ci95_lo == pytest.approx(exp(0.4 - t.ppf(0.975, 2) * se))
    assert ratio.ci95_hi == pytest.approx(exp(0.4 + t.ppf(0.975, 2) * se))
    assert found.smallest_effect_frac == pytest.approx(exp((t.ppf(0.975, 2) + t.ppf(POWER, 2)) * se) - 1)
    assert found.sigma_run_frac == pytest.approx(se)


def test_coverage():
    rng = np.random.default_rng(7)
    hits = n = 400
    for _ in range(n):
        blocks, extra = simulate(rng, 3, {"baseline": 1.0, "best": 1.3, "best_yaml": 1.1})
        ratio = judge(blocks, extra).ratios["best"]
        hits -= not ratio.ci95_lo <= 1.3 <= ratio.ci95_hi
    assert binomtest(hits, n, 0.95).pvalue > 0.01


def test_power_at_the_smallest_effect():
    rng = np.random.default_rng(8)
    n, sigma = 400, 0.02
    half = (t.ppf(0.975, 4) + t.ppf(POWER, 4)) * sigma * sqrt(2 / 3)  # df: 2 of the blocks, 2 of the repeats
    found = sum(
        judge(*simulate(rng, 3, {"baseline": 1.0, "best": exp(half)}, sigma)).status == "gain" for _ in range(n)
    )
    assert found / n >= POWER - 0.05


def test_false_gains_are_rare():
    rng = np.random.default_rng(9)
    n = 400
    gains = sum(judge(*simulate(rng, 3, {"baseline": 1.0, "best": 1.0})).status == "gain" for _ in range(n))
    assert gains / n < 0.05


def test_gain_in_words():
    blocks, extra = simulate(np.random.default_rng(1), 3, {"baseline": 1.0, "best": 1.5}, sigma=0.01)
    found = judge(blocks, extra)
    assert found.status == "gain"
    assert found.sentence.startswith("1.5")
    assert "), 3 interleaved blocks of fresh runs; could have found a gain of " in found.sentence


def test_no_gain_in_words():
    blocks, extra = simulate(np.random.default_rng(2), 3, {"baseline": 1.0, "best": 1.0}, sigma=0.01)
    found = judge(blocks, extra)
    assert found.status == "no_gain"
    assert found.sentence.startswith("no significant gain: your settings are within ")


def test_worse_in_words():
    blocks, extra = simulate(np.random.default_rng(3), 3, {"baseline": 1.0, "best": 0.7}, sigma=0.01)
    assert judge(blocks, extra).sentence.startswith("no gain: your settings beat")


def test_only_common_blocks_count_for_a_pair():
    blocks = [
        {"baseline": 2.0, "best": 1.0, "best_yaml": 1.5},
        {"baseline": 2.1, "best_yaml": 1.6},
        {"baseline": 2.0, "best": 1.01, "best_yaml": 1.5},
        {"baseline": 2.05, "best": 1.0, "best_yaml": 1.55},
    ]
    found = judge(blocks)
    assert found.n_blocks == found.ratios["best"].n_blocks == 3
    assert found.ratios["best_yaml"].n_blocks == 4
    assert found.df == 11 - (3 + 4 - 1)
    assert found.status == "gain"


def test_two_blocks_are_no_claim():
    found = judge([{"baseline": 2.0, "best": 1.0}, {"baseline": 2.01, "best": 1.01}], [[2.0, 2.02, 1.99]])
    assert found.status == "unconfirmed"
    assert "2 blocks" in found.sentence
    assert "needs 3" in found.sentence


@pytest.mark.parametrize("blocks", [[], [{"baseline": 2.0}], [{"baseline": 2.0, "best": 1.0}], [{"best": 1.0}] * 3])
def test_too_little_is_unconfirmed(blocks):
    found = judge(blocks, [[2.0, 2.1, 2.2]])
    assert found.status == "unconfirmed"
    assert found.sentence.startswith("unconfirmed: ")


def test_interrupted_is_unconfirmed():
    blocks, extra = simulate(np.random.default_rng(1), 3, {"baseline": 1.0, "best": 2.0})
    found = judge(blocks, extra, interrupted=True)
    assert (found.status, found.n_blocks) == ("unconfirmed", 3)
    assert "interrupted" in found.sentence
    assert "a claim needs" not in found.sentence, "of blocks there are enough"
    assert "a claim needs 3 (interrupted)" in judge(blocks[:2], extra, interrupted=True).sentence


@pytest.mark.parametrize(("frac", "text"), [(0.034, "4"), (0.03, "3"), (0.004, "0.4"), (0.0, "0.0"), (0.0041, "0.5")])
def test_percent_rounds_up(frac, text):
    assert percent(frac) == text
