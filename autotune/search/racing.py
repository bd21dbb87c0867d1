"""Can a running segment still win?

SEARCH 3.5: stop when the batch-means interval of seconds per image lies wholly above 1.15 times the incumbent's.
A plain standard error over steps is worthless here (steps are autocorrelated), hence ten batch means; 1.3 widens for
what autocorrelation is left between them, 3 for the many looks.
"""

from __future__ import annotations

from math import sqrt
from statistics import fmean, stdev
from typing import Final

from autotune.contract import StepColumns, TrialResult

N_BATCH_MEANS: Final = 10
MIN_STEPS: Final = 10
MARGIN: Final = 1.15
WIDTH: Final = 3 * 1.3
BETWEEN: Final = ("val_s", "save_s", "epoch_end_s", "final_s")
"""Terms of the job that are no steps, and no start."""


def batch_means(steps: StepColumns) -> list[float]:
    """Seconds per image of ten consecutive, equally long stretches of steps (the oldest odd steps are left out)."""
    size = len(steps.step_s) // N_BATCH_MEANS
    first = len(steps.step_s) - size * N_BATCH_MEANS
    return [
        sum(steps.step_s[i : i + size]) / max(1, sum(steps.images[i : i + size]))
        for i in range(first, len(steps.step_s), size)
    ]


def hopeless(steps: StepColumns, incumbent: TrialResult | None, *, by_job: bool) -> str | None:
    """Why this segment cannot win any more, in words; None while it can.

    Args:
        steps: measured steps so far.
        incumbent: best trial so far; None when there is none to lose against.
        by_job: the objective is the time of the whole job. A job short enough to be decided by its start may be won
            at a lower rate, so it must then also be too slow as a job, even if its start took no time at all. What
            comes between the epochs is taken to be as long as the incumbent's, and so is the gain of a closed mosaic.
    """
    n_steps = len(steps.step_s)
    if incumbent is None or not incumbent.images_per_s or n_steps < MIN_STEPS:
        return None
    means = batch_means(steps)
    mean = fmean(means)
    lower = mean - WIDTH * stdev(means) / sqrt(len(means))
    if lower <= MARGIN / incumbent.images_per_s:
        return None
    if by_job and incumbent.job_s is not None:
        terms = incumbent.job_terms
        epochs_s = sum(terms.get(term) or 0.0 for term in ("mosaic_epochs_s", "closed_epochs_s"))
        between_s = sum(terms.get(term) or 0.0 for term in BETWEEN)
        if lower * incumbent.images_per_s * epochs_s + between_s <= incumbent.job_s:
            return None
    needs = incumbent.images_per_s / MARGIN
    return f"{1 / mean:.4g} img/s after {n_steps} steps, needs {needs:.4g}"
