"""Which parameters are likeliest, given residuals and a Gaussian prior, when some residuals are outliers?

Levenberg-Marquardt (Nocedal & Wright, Numerical Optimization, 2006, 10.3) with the weights of Huber's loss (Huber,
Robust Estimation of a Location Parameter, 1964).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from autotune.search.effects import Array

HUBER: Final = 2.5
"""Standard deviations from which a residual counts linearly."""
ITERATIONS: Final = 25
LEAST_GAIN: Final = 1e-3
"""Of the negative log posterior: less is not worth another iteration."""


def maximise(
    residuals: Callable[[Array], tuple[Array, Array]], mean: Array, sd: Array, start: Array
) -> tuple[Array, Array]:
    """Levenberg-Marquardt on the data's residuals and the prior's.

    Args:
        residuals: parameters -> (n,) residuals, each divided by its standard deviation, and (n, parameters) slopes.
        mean: of the Gaussian prior.
        sd: of the Gaussian prior.
        start: where to begin.

    Returns:
        The maximum and the inverse of the Gauss-Newton curvature there.
    """
    precision = np.diag(1.0 / sd**2)
    theta, damping = start.copy(), 1e-2

    def cost(r: Array, theta: Array) -> float:
        size = np.abs(r)
        huber = np.where(size <= HUBER, 0.5 * size**2, HUBER * (size - 0.5 * HUBER))
        return float(huber.sum() + 0.5 * (((theta - mean) / sd) ** 2).sum())

    r, slopes = residuals(theta)
    now = cost(r, theta)
    for _ in range(ITERATIONS):
        weight = np.where(np.abs(r) <= HUBER, 1.0, HUBER / np.maximum(np.abs(r), 1e-12))
        curvature = slopes.T @ (weight[:, None] * slopes) + precision
        gradient = slopes.T @ (weight * r) + (theta - mean) / sd**2
        gain = 0.0
        while damping < 1e6:
            there = theta - np.linalg.solve(curvature + damping * np.diag(np.diag(curvature)), gradient)
            r_there, slopes_there = residuals(there)
            then = cost(r_there, there)
            if then < now:
                gain, now = now - then, then
                theta, r, slopes, damping = there, r_there, slopes_there, max(damping / 5, 1e-6)
                break
            damping *= 5
        if gain < LEAST_GAIN:
            break
    weight = np.where(np.abs(r) <= HUBER, 1.0, HUBER / np.maximum(np.abs(r), 1e-12))
    covariance = np.asarray(np.linalg.inv(slopes.T @ (weight[:, None] * slopes) + precision), dtype=np.float64)
    return theta, covariance
