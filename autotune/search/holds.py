"""Is the winner still the winner? A new comparison with the baseline against the one of the receipt. Pure statistics.

Both are mean differences of logarithms over interleaved blocks of fresh runs (search/verdict.py), each with a
run-to-run variance of its own: another day or another machine has another noise. Their difference is judged by Welch's
t with Satterthwaite's degrees of freedom (Welch, Biometrika 34, 1947). Simulated with noise of 3.3 %, a receipt of
three blocks and six degrees of freedom, and a recheck of three to eight blocks: this test's false alarms are 0.4-0.6 %
where the noise is the same, 1.4 % where the recheck's is three times the receipt's; with pooled variances, 3.6 %.
A receipt whose winner was the luckiest of three equal finalists promises a little too much: false alarms in 1.2 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import expm1, inf, log, sqrt
from statistics import fmean, variance
from typing import Final, Literal

from autotune.contract import Comparison, TrialResult
from autotune.search.objective import OBJECTIVES
from autotune.search.verdict import MIN_BLOCKS, judge, percent

LEVEL: Final = 0.005
"""One-sided, of each of the two tests: together at most one false alarm in a hundred rechecks of what is unchanged."""
SMALL_FRAC: Final = 0.02
"""A speed-up that is lower by less than this still holds, however sure we are: the finalist stage itself is content
with an interval of this half-width."""


STEPS: Final = ("mosaic_epochs_s", "closed_epochs_s")
"""Terms of T(job) that are steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """Does it hold, and why?"""

    status: Literal["holds", "does_not_hold", "unknown"]
    sentence: str
    now: Comparison | None
    lower_p: float | None = None
    """Probability of a speed-up so much below the receipt's, or less, if nothing had changed."""
    below_p: float | None = None
    """Of one so much below 1, if the winner were as fast as the baseline."""


def worth(
    result: TrialResult, objective: str, terms: Mapping[str, float | None], images_per_s: float | None
) -> float | None:
    """A run's objective, to be compared as the finalists' was.

    Of the job's time a recheck measures the steps; whatever comes once a job or at the end of an epoch is as in the
    receipt, and so is how much faster the epochs without mosaic are.

    Args:
        result: of a fresh run.
        objective: of the run that the receipt is of.
        terms: of T(job), mean of the receipt's runs of this configuration; seconds.
        images_per_s: geometric mean of the same runs.
    """
    if not result.outcome.measured:
        return None
    if objective != "job_time" or not result.images_per_s:
        return OBJECTIVES[objective](result)
    if terms.get("mosaic_epochs_s") is None or not images_per_s:
        return 1 / result.images_per_s
    slower = images_per_s / result.images_per_s
    return sum(s * (slower if term in STEPS else 1.0) for term, s in terms.items() if s is not None)


def compare_now(blocks: Sequence[Mapping[str, float]]) -> Comparison | None:
    """The new comparison.

    Args:
        blocks: `baseline` and `best` -> objective of a fresh run (lower is better).

    Returns:
        None below MIN_BLOCKS whole blocks.
    """
    whole = [b for b in blocks if {"baseline", "best"} <= b.keys()]
    judgement = judge(whole)
    ratio, sigma = judgement.ratios.get("best"), judgement.sigma_run_frac
    if len(whole) < MIN_BLOCKS or ratio is None or ratio.ci95_lo is None or ratio.ci95_hi is None or sigma is None:
        return None
    return Comparison(
        speedup=ratio.speedup,
        ci95_lo=ratio.ci95_lo,
        ci95_hi=ratio.ci95_hi,
        n_blocks=ratio.n_blocks,
        sigma_run_frac=sigma,
        df=judgement.df,
    )


def holding(then: Comparison, now: Comparison) -> Holding:
    """Judge the new comparison against the receipt's.

    It does not hold when the new speed-up is lower than the receipt's by more than SMALL_FRAC and significantly, or
    significantly below 1. A smaller one that both could have been holds.
    """
    from scipy.special import stdtr  # distribution function of Student t

    difference = log(now.speedup / then.speedup)
    t, df = _t(difference, (_variance(then), then.df), (_variance(now), now.df))
    lower_p = float(stdtr(df, t))
    t, df = _t(log(now.speedup), (_variance(now), now.df))
    below_p = float(stdtr(df, t))
    figures = f"{_said(now)} in {now.n_blocks} blocks now, {_said(then)} in the receipt"
    reasons = []
    if lower_p < LEVEL and difference < log(1 - SMALL_FRAC):
        lost = percent(1 - now.speedup / then.speedup)
        reasons.append(f"the ratio is {lost} % smaller than promised, which is more than the noise of both")
    if below_p < LEVEL:
        reasons.append("your own settings are better here")
    if reasons:
        sentence = f"does not hold: {figures}; {'; '.join(reasons)}"
        return Holding(status="does_not_hold", sentence=sentence, now=now, lower_p=lower_p, below_p=below_p)
    loss = could_find(then, now)
    found = f"a loss of {percent(loss)} % would have been found"
    if then.ci95_lo > 1.0 and loss > 1 - 1 / then.speedup:
        found += ", so not that of the whole gain: a longer --budget tells more"
    return Holding(
        status="holds",
        sentence=f"holds: {figures}; {found}",
        now=now,
        lower_p=lower_p,
        below_p=below_p,
    )


def could_find(then: Comparison, now: Comparison, power: float = 0.8) -> float:
    """The smallest loss of speed-up that is found in this share of rechecks with such noise."""
    from scipy.special import stdtrit

    spread = _variance(then) + _variance(now)
    _, df = _t(0.0, (_variance(then), then.df), (_variance(now), now.df))
    half = (float(stdtrit(df, 1 - LEVEL)) + float(stdtrit(df, power))) * sqrt(spread)
    return max(-expm1(-half), SMALL_FRAC)


def moved(then: Sequence[float], now: Sequence[float]) -> float | None:
    """How many times as fast a configuration is as it was, when that is more than the noise of fresh runs, else None.

    Args:
        then: images/s of the receipt's runs of one configuration.
        now: of the recheck's.
    """
    from scipy.special import stdtr

    if min(len(then), len(now)) < 2:
        return None
    a, b = ([log(rate) for rate in rates] for rates in (then, now))
    difference = fmean(b) - fmean(a)
    t, df = _t(abs(difference), (variance(a) / len(a), len(a) - 1), (variance(b) / len(b), len(b) - 1))
    sure = float(stdtr(df, -t)) < LEVEL / 2 and abs(difference) > SMALL_FRAC
    return expm1(difference) + 1 if sure else None


def _t(difference: float, *parts: tuple[float, int]) -> tuple[float, float]:
    """Welch's t and Satterthwaite's degrees of freedom; `parts` are variances of means, and their own degrees."""
    spread = sum(v for v, _ in parts)
    if spread == 0.0:  # no run differed from another: whatever differs is beyond all noise
        return (0.0 if difference == 0 else inf if difference > 0 else -inf), 1.0
    return difference / sqrt(spread), spread**2 / sum(v**2 / df for v, df in parts)


def _variance(c: Comparison) -> float:
    """Of the mean log ratio: two runs a block."""
    return float(2 * c.sigma_run_frac**2 / c.n_blocks)


def _said(c: Comparison) -> str:
    return f"{c.speedup:.2f}x ({c.ci95_lo:.2f}-{c.ci95_hi:.2f})"
