"""How did the speed of a machine change while a table was recorded?

Log rate of run i of configuration c = level of c + drift at i + noise, the drift an Ornstein-Uhlenbeck process over the
number of the run, which the repeats of a configuration (the sentinels above all) show. Its size, its length and the
noise are those that make the rates likeliest, so that noise alone is not taken for drift (Rasmussen & Williams,
Gaussian Processes for Machine Learning, 2006, 2.2 and 5.4.1).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Final

MIN_REPEATS: Final = 3
"""Of one configuration at least; fewer tell nothing."""
LEVEL_SD: Final = 1.0
"""Of the log rates of configurations: nearly nothing is believed of them."""
DRIFTS: Final = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)
LENGTHS: Final = (10.0, 40.0, 160.0)
"""Runs until the correlation of the drift with itself has fallen to 1/e."""
NOISES: Final = (0.01, 0.02, 0.04, 0.08, 0.16)
"""Standard deviations of log rates."""


def drift_of(configurations: Sequence[Hashable], log_rates: Sequence[float]) -> list[float]:
    """Log of the machine's speed at each run, against that of the whole recording.

    Args:
        configurations: of each run, in the order in which they ran.
        log_rates: of each run.
    """
    import numpy as np
    from scipy.linalg import cho_factor, cho_solve

    n = len(log_rates)
    if max(Counter(configurations).values(), default=0) < MIN_REPEATS:
        return [0.0] * n
    names = {c: i for i, c in enumerate(dict.fromkeys(configurations))}
    cell = np.array([names[c] for c in configurations])
    same = LEVEL_SD**2 * (cell[:, None] == cell[None])
    apart = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    y = np.array(log_rates) - np.mean(log_rates)
    best, found = np.inf, np.zeros(n)
    for size, length, noise in itertools.product(DRIFTS, LENGTHS, NOISES):
        if not size and length != LENGTHS[0]:
            continue
        process = size**2 * np.exp(-apart / length)
        factor = cho_factor(same + process + noise**2 * np.eye(n))
        weights = cho_solve(factor, y)
        loss = float(y @ weights + 2 * np.log(np.diag(factor[0])).sum())
        if loss < best:
            best, found = loss, process @ weights
    return [float(x) for x in found - found.mean()]
