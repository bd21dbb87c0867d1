"""Which of the measured trials is the best, and by how much do two runs of the same settings differ?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import sqrt
from statistics import fmean, geometric_mean
from typing import Final

from autotune.search.ran import Ran

NOISE_FRAC: Final = 0.015
"""Run-to-run noise until three runs of the baseline say better (SEARCH 3.6)."""


def noise_frac(values: Sequence[float]) -> float:
    """Run-to-run standard deviation as a share of the mean, from the repeats of the baseline when there are three.

    Args:
        values: objective of each run of the user's own settings.
    """
    if len(values) < 3:
        return NOISE_FRAC
    mean = fmean(values)  # statistics.stdev reckons in fractions: a third of a millisecond, several times a trial
    return max(NOISE_FRAC, sqrt(sum((v / mean - 1) ** 2 for v in values) / (len(values) - 1)))


def best_of(baseline: Ran, own: Sequence[float], tried: Iterable[Ran]) -> Ran:
    """Lowest objective among measured trials; within the noise of it, the one with the fewest changes.

    Args:
        baseline: it stands for the geometric mean of `own`, the objective of all its runs.
        own: see there; empty: the baseline was not measured.
        tried: measured search trials; an unstable one stands for the bad end of its interval.
    """
    stands_for = replace(baseline, value=geometric_mean(own) if own else None)
    valued = [(r.value * r.doubt, r) for r in (stands_for, *tried) if r.value]
    if not valued:
        return baseline
    limit = min(value for value, _ in valued) * (1 + noise_frac(own))
    return min((len(r.changes), value, r.number, r) for value, r in valued if value <= limit)[3]
