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
"""Of main effects: nearly nothing is believed of them."""
PAIRS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16)
OWN = (0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12)
NOISE = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.16)
"""Grids of standard deviations: of interactions, of what one configuration alone has, and of a run."""


@dataclass(frozen=True)
class Estimate:
    """Of every configuration that was measured: its rate, and how well that is known."""

    images_per_s: dict[str, float]
    """key_of -> images/s."""
    sd_frac: dict[str, float]
    """key_of -> standard deviation of its logarithm."""
    pairs_frac: float
    own_frac: float
    noise_frac: float


def estimate(recording: Recording) -> Estimate:
    """The estimate of a table."""
    cells = {key: [log(x) for r in runs if (x := _rate(r.result))] for key, runs in recording.cells.items()}
    cells = {key: ys for key, ys in cells.items() if ys}
    params = {key_of(p): p for p in recording.configs}
    mean, count = np.array([np.mean(ys) for ys in cells.values()]), np.array([len(ys) for ys in cells.values()])
    within = sum(float(np.sum((np.array(ys) - np.mean(ys)) ** 2)) for ys in cells.values())
    level, df = mean.mean(), int(count.sum()) - len(cells)
    mains, pairs = (_alike([params[key] for key in cells], n) for n in (1, 2))
    best: tuple[float, Any] = (np.inf, None)
    for pair, own, noise in itertools.product(PAIRS, OWN, NOISE):
        between = EFFECT_SD**2 * mains + pair**2 * pairs + own**2 * np.eye(len(mean))
        inverse = np.linalg.inv(between + np.diag(noise**2 / count))
        # The means, and the runs about them: together all runs' likelihood.
        loss = (mean - level) @ inverse @ (mean - level) - np.linalg.slogdet(inverse)[1]
        loss += within / noise**2 + df * log(noise**2)
        if loss < best[0]:
            believed = level + between @ inverse @ (mean - level)
            variance = np.diag(between) - ((between @ inverse) * between).sum(axis=1)
            best = float(loss), (pair, own, noise, believed, np.sqrt(np.maximum(variance, 0.0)))
    pair, own, noise, believed, sd = best[1]
    return Estimate(
        images_per_s={key: exp(believed[i]) for i, key in enumerate(cells)},
        sd_frac={key: float(sd[i]) for i, key in enumerate(cells)},
        pairs_frac=pair,
        own_frac=own,
        noise_frac=noise,
    )


def _rate(result: Any) -> float | None:
    return result.images_per_s if result.outcome.measured else None


def _alike(configurations: list[Params], n: int) -> Any:
    """(n, n) in how many of the settings, or of the pairs of settings, two configurations agree."""
    out = np.zeros((len(configurations), len(configurations)))
    for names in itertools.combinations(configurations[0], n):
        values = [repr([p[name] for name in names]) for p in configurations]
        out += np.array([[a == b for b in values] for a in values])
    return out
