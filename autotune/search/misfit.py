"""How far is the formula off, and how far are the beliefs it began with?

What the formula cannot say is left to a Gaussian process on the residuals of log seconds per image, whose covariance
falls with the settings that differ (Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, 2.2). A
setting that makes other kernels run, or moves work between cores, counts whole; the others count little: what a larger
bucket does to a step with another kernel is no news. The process's size, and a factor on the deviations of all beliefs,
are those that make the data likeliest (empirical Bayes, 5.4), and so is whether their means are kept at all: where
folklore is wrong, the beliefs and not the formula are to blame, and wider ones, or none, find out sooner (simulated,
results/LOG.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from autotune.search.effects import BATCH, THREADS, WORKERS, Array, Integers

MISFIT: Final = (0.01, 0.02, 0.04, 0.08, 0.16)
"""Grid of the residual process's standard deviation."""
USUAL_MISFIT: Final = 0.03
MISFIT_WEIGHT: Final = 2.0
"""Inverse variance of log misfit about log USUAL_MISFIT: few trials say little of it."""
WIDER: Final = (1.0, 1.5, 2.2)
"""Grid of the factor on the deviations of beliefs. With 3.3 in it a search tried absurd settings for ten trials."""
WIDER_WEIGHT: Final = 6.0
"""Inverse variance of its logarithm about 0."""
TRUSTS: Final = ((1.0, 0.0), (0.0, 4.0))
"""(Share of the beliefs' means that is kept, -2 log of its prior probability): a machine on which folklore is reversed
is nearer to "nothing is known" than to folklore with wide deviations."""
LENGTH: Final = 3.0
"""Settings that differ until the covariance of two residuals has fallen to 1/e."""
WHOLE_SETTINGS: Final = frozenset(
    {BATCH, "amp", "compile", "channels_last", "activation_memory_budget", WORKERS, THREADS, "cache"}
)
MINOR: Final = 0.25
"""Of a setting, for LENGTH, that is none of these."""


def counts(names: Sequence[str]) -> Array:
    """How much a difference in each knob counts for `similarity`."""
    return np.array([1.0 if name in WHOLE_SETTINGS else MINOR for name in names])


def similarity(one: Integers, other: Integers, weights: Array) -> Array:
    """(n, m) correlation of the residuals of two configurations: exp(-settings that differ / LENGTH).

    Args:
        one: (n, knobs) indices.
        other: (m, knobs) indices.
        weights: (knobs,) of `counts`.
    """
    differ = np.zeros((len(one), len(other)))
    for a, b, weight in zip(one.T, other.T, weights, strict=True):
        differ += weight * (a[:, None] != b[None])
    out: Array = np.exp(-differ / LENGTH)
    return out


def likeliest(
    off: Mapping[float, Array], own: Array, effects: Array, similar: Array, noise: Array
) -> tuple[float, float, float]:
    """(trust, WIDER, MISFIT) that make the data likeliest, the parameters integrated out about the fit.

    The residuals alone would say nothing: there are more parameters than trials.

    Args:
        off: trust -> (n,) observed less what the prior means predict.
        own: (n, n) prior covariance that the formula's own parameters give.
        effects: (n, n) the same of the settings' beliefs.
        similar: (n, n) of `similarity`.
        noise: (n,) standard deviations of the observations.
    """

    def losses(wider: float, misfit: float) -> list[tuple[float, tuple[float, float, float]]]:
        covariance = own + wider**2 * effects + misfit**2 * similar + np.diag(noise**2)
        beliefs = MISFIT_WEIGHT * math.log(misfit / USUAL_MISFIT) ** 2 + WIDER_WEIGHT * math.log(wider) ** 2
        beliefs += float(np.linalg.slogdet(covariance)[1])
        offs = np.array([off[trust] for trust, _ in TRUSTS]).T
        data = (offs * np.linalg.solve(covariance, offs)).sum(axis=0)
        return [(float(d) + doubt + beliefs, (t, wider, misfit)) for d, (t, doubt) in zip(data, TRUSTS, strict=True)]

    return min(found for w in WIDER for r in MISFIT for found in losses(w, r))[1]


def quadratic(x: Array, a: Array) -> Array:
    """(n,) x' a x of each row."""
    out: Array = ((x @ a) * x).sum(axis=1)
    return out
