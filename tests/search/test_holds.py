"""Does a recheck raise no alarm where nothing changed, and find what did? Seeded simulation of the rule."""

from __future__ import annotations

import random
from dataclasses import replace
from math import exp, log
from statistics import fmean

import pytest

from autotune.contract import Comparison, Outcome, TrialResult
from autotune.search.holds import LEVEL, compare_now, could_find, holding, moved, worth

SIGMA = 0.033
"""Run-to-run noise of five fresh runs on a machine of two cores (MEASURING 5)."""


def comparison(speedup: float, *, sigma: float = SIGMA, n_blocks: int = 3, df: int = 6) -> Comparison:
    return Comparison(
        speedup=speedup, ci95_lo=speedup * 0.9, ci95_hi=speedup * 1.1, n_blocks=n_blocks, sigma_run_frac=sigma, df=df
    )


def blocks_of(rng: random.Random, speedup: float, *, sigma: float = SIGMA, n: int = 3) -> list[dict[str, float]]:
    """Objective of fresh runs, with a drift that blocks share."""
    blocks = []
    for _ in range(n):
        drift = rng.gauss(0, 0.05)
        base, best = (exp(drift + rng.gauss(0, sigma)) for _ in range(2))
        blocks.append({"baseline": base, "best": best / speedup})
    return blocks


def receipt_of(rng: random.Random, speedup: float) -> Comparison:
    """As the finalist stage would write it: three blocks, and repeats of the baseline for its noise."""
    found = compare_now(blocks_of(rng, speedup))
    assert found is not None
    sum_sq = found.df * found.sigma_run_frac**2 + sum(rng.gauss(0, SIGMA) ** 2 for _ in range(4))
    return comparison(found.speedup, sigma=(sum_sq / (found.df + 4)) ** 0.5, df=found.df + 4)


def share_of_alarms(then: float, now: float, *, sigma: float = SIGMA, n: int = 3, runs: int = 1200) -> float:
    rng = random.Random(f"{then} {now} {sigma} {n}")
    alarms = 0
    for _ in range(runs):
        found = compare_now(blocks_of(rng, now, sigma=sigma, n=n))
        assert found is not None
        alarms += holding(receipt_of(rng, then), found).status == "does_not_hold"
    return alarms / runs


def test_no_alarm_where_nothing_changed() -> None:
    # The level is 2 x LEVEL at most; 1200 draws of 1 % show more than 2 % once in a thousand times.
    assert share_of_alarms(1.5, 1.5) <= 0.02
    assert share_of_alarms(1.0, 1.0, n=5) <= 0.02
    assert share_of_alarms(1.5, 1.5, sigma=3 * SIGMA) <= 0.025, "a noisier day is no news"


def test_an_injected_loss_is_found() -> None:
    assert share_of_alarms(1.5, 1.5 / 1.4, runs=300) >= 0.9
    assert share_of_alarms(1.5, 1.5 / 1.2, n=5, runs=300) >= 0.9
    assert share_of_alarms(1.0, 0.6, n=5, runs=300) >= 0.9


def test_it_finds_what_it_says_it_could_find() -> None:
    then = comparison(1.5)
    promised = could_find(then, comparison(1.5, n_blocks=5, df=4))
    found = share_of_alarms(1.5, 1.5 * (1 - promised), n=5, runs=400)
    assert 0.65 <= found <= 0.95, "80 % is what it says"


def test_a_smaller_speedup_within_the_noise_holds() -> None:
    said = holding(comparison(1.50), comparison(1.42, df=2))
    assert said.status == "holds"
    assert said.sentence.startswith("holds: 1.42x (1.28-1.56) in 3 blocks now, 1.50x")
    assert "would have been found" in said.sentence


def test_a_loss_too_small_to_matter_holds_however_sure() -> None:
    exact = {"sigma": 1e-4, "df": 8}
    assert holding(comparison(1.50, **exact), comparison(1.48, **exact)).status == "holds"
    assert holding(comparison(1.50, **exact), comparison(1.46, **exact)).status == "does_not_hold"


def test_slower_than_the_baseline_does_not_hold() -> None:
    said = holding(comparison(1.05, sigma=0.2), comparison(0.97, sigma=0.003, n_blocks=5, df=4))
    assert said.status == "does_not_hold"
    assert "your own settings are better here" in said.sentence
    assert said.below_p is not None
    assert said.below_p < LEVEL


def test_too_noisy_a_recheck_says_how_little_it_knows() -> None:
    noisy = holding(comparison(1.5, sigma=0.01), comparison(1.4, sigma=0.2, df=2))
    assert noisy.status == "holds"
    assert noisy.sentence.endswith("so not that of the whole gain: a longer --budget tells more")
    assert "longer --budget" not in holding(comparison(1.5), comparison(1.5, sigma=0.01, df=4)).sentence


def test_a_faster_winner_holds() -> None:
    assert holding(comparison(1.5, sigma=0.001), comparison(2.5, sigma=0.001, df=2)).status == "holds"


def test_runs_without_any_noise() -> None:
    exact = comparison(1.5, sigma=0.0)
    assert holding(exact, exact).status == "holds"
    assert holding(exact, comparison(1.2, sigma=0.0)).status == "does_not_hold"


def test_fewer_than_three_whole_blocks_say_nothing() -> None:
    rng = random.Random(0)
    assert compare_now(blocks_of(rng, 2.0, n=2)) is None
    assert compare_now([*blocks_of(rng, 2.0, n=2), {"baseline": 1.0}]) is None
    found = compare_now(blocks_of(rng, 2.0, n=3))
    assert found is not None
    assert found.speedup == pytest.approx(2.0, rel=0.1)


def test_both_slower_is_told_apart_from_noise() -> None:
    rates = [100.0, 103.0, 98.0]
    assert moved(rates, [101.0, 97.0, 102.0]) is None
    half = moved(rates, [r / 2 for r in rates])
    assert half == pytest.approx(exp(fmean(map(log, rates)) - fmean(map(log, rates))) / 2)
    assert moved([100.0], [50.0, 51.0]) is None, "one run has no spread"


def test_of_the_jobs_time_the_steps_are_measured_again() -> None:
    run = TrialResult(
        number=0, role="finalist", outcome=Outcome.OK, params={}, started_s=0.0, took_s=9.0, images_per_s=50.0
    )
    terms = {"start_s": 8.0, "compile_s": None, "mosaic_epochs_s": 90.0, "closed_epochs_s": 5.0, "val_s": 3.0}
    assert worth(run, "job_time", terms, 100.0) == 8 + 2 * 90 + 2 * 5 + 3
    assert worth(run, "images_per_s", terms, 100.0) == 1 / 50
    assert worth(run, "job_time", {}, None) == 1 / 50, "a receipt that does not know its job"
    assert worth(replace(run, outcome=Outcome.MISMATCH), "job_time", terms, 100.0) is None
