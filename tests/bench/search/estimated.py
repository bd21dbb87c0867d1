"""What is a recorded configuration truly worth, when its few runs are noisy? An estimate that all runs share.

Log rate = main effects and pairwise interactions of the settings + what this configuration alone has + noise of a run.
The mean of two runs that are 8 % apart makes the luckiest of 180 configurations "the best" by 10 %; an estimate that
knows what the same settings did elsewhere does not (best linear unbiased prediction, Robinson, Statistical Science 6,
1991). The sizes of both are those that make the runs likeliest. It is no measurement, and the tables say so.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import exp, log
from typing import Any

import numpy as np

from autotune.contract import Params
from autotune.recording import Recording
from autotune.search.proposals import key_of

EFFECT_SD = 1.0
"""Of main effects and interactions: nearly nothing is believed of them."""
OWN = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12)
NOISE = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.16)
"""Grids of standard deviations: of what one configuration alone has, and of a run."""


@dataclass(frozen=True)
class Estimate:
    """Of every configuration that was measured: its rate, and how well that is known."""

    images_per_s: dict[str, float]
    """key_of -> images/s."""
    sd_frac: dict[str, float]
    """key_of -> standard deviation of its logarithm."""
    own_frac: float
    noise_frac: float

    def best(self) -> float:
        """Images/s of the fastest."""
        return max(self.images_per_s.values())


def estimate(recording: Recording) -> Estimate:
    """The estimate of a table."""
    runs = [(r.result.params, log(x)) for rs in recording.cells.values() for r in rs if (x := _rate(r.result))]
    cells = {key_of(params): params for params, _ in runs}
    places = {key: i for i, key in enumerate(cells)}
    at = np.array([places[key_of(params)] for params, _ in runs])
    y = np.array([rate for _, rate in runs])
    level = y.mean()
    x = _features(list(cells.values()))
    effects = EFFECT_SD**2 * x @ x.T
    best: tuple[float, Any] = (np.inf, None)
    for own, noise in itertools.product(OWN, NOISE):
        between = effects + own**2 * np.eye(len(cells))
        inverse = np.linalg.inv(between[np.ix_(at, at)] + noise**2 * np.eye(len(y)))
        loss = (y - level) @ inverse @ (y - level) - np.linalg.slogdet(inverse)[1]
        if loss < best[0]:
            cross = between[:, at]
            mean = level + cross @ inverse @ (y - level)
            sd = np.sqrt(np.maximum(np.diag(between) - ((cross @ inverse) * cross).sum(axis=1), 0.0))
            best = float(loss), (own, noise, mean, sd)
    own, noise, mean, sd = best[1]
    return Estimate(
        images_per_s={key: exp(mean[i]) for key, i in places.items()},
        sd_frac={key: float(sd[i]) for key, i in places.items()},
        own_frac=own,
        noise_frac=noise,
    )


def _rate(result: Any) -> float | None:
    return result.images_per_s if result.outcome.measured else None


def _features(configurations: list[Params]) -> np.ndarray:
    """(n, features): each value of each setting, and each pair of values of two settings."""
    names = list(configurations[0])
    columns: list[list[float]] = []
    for one, other in itertools.combinations_with_replacement(names, 2):
        for pair in {(repr(p[one]), repr(p[other])) for p in configurations}:
            columns.append([float((repr(p[one]), repr(p[other])) == pair) for p in configurations])
    return np.array(columns).T
