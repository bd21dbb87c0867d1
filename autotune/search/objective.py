"""How long would the user's whole job take with this configuration, and which number does the search minimise?

The model of the job is MEASURING 4:

    T(job) = start + compile + cache build + mosaic epochs + closed epochs + epochs * (val + save + epoch end)

Terms that nothing has measured yet are None and are left out of the sum: validation, checkpoints and epoch ends are
None in this version, and the epochs after close_mosaic run at the rate of the mosaic epochs until that is measured.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Final

from autotune.contract import JOB_TERMS, TrialResult
from autotune.errors import InputError

Objective = Callable[[TrialResult], float | None]


def job_terms(
    result: TrialResult, baseline: TrialResult | None = None, cold_s: Mapping[str, float] | None = None
) -> dict[str, float | None]:
    """Seconds of each term of T(job) for one trial.

    Args:
        result: a trial; its phases are taken as disjoint (`build` does not contain `cache`).
        baseline: gives the facts of the job (images, epochs) where the trial did not live to report them.
        cold_s: term -> the dearest that was seen for this configuration. A compile or a disk cache that an earlier
            trial left warm costs this trial nothing, but it costs the user's job its full price once.

    Returns:
        One entry for every name in contract.JOB_TERMS; None where it was not measured.
    """
    phases, job = result.phases_s, dict(baseline.job if baseline else {}) | dict(result.job)
    terms: dict[str, float | None] = dict.fromkeys(JOB_TERMS)
    first_extra_s = 0.0
    if "first_step" in phases and result.step_p50_s is not None:
        first_extra_s = max(0.0, phases["first_step"] - result.step_p50_s)
    compiled = bool(result.effective.get("compile"))
    # The user's job starts cold: of a warm trial only the first step is the job's.
    start = baseline.phases_s if result.warm and baseline else phases
    if "import" in start and "build" in start:
        terms["start_s"] = start["import"] + start["build"] + (0.0 if compiled else first_extra_s)
    if phases:
        terms["compile_s"] = first_extra_s if compiled else 0.0
        terms["cache_build_s"] = phases.get("cache", 0.0)
    for term, floor in (cold_s or {}).items():
        known = terms[term]
        terms[term] = floor if known is None else max(known, floor)
    if result.images_per_s and job.get("n_images") and job.get("epochs"):
        # With compile the loader drops the last incomplete batch: an epoch trains that many images less.
        n_images = min(job["n_images"], job.get("n_batches", math.inf) * job.get("batch", math.inf))
        epoch_s = n_images / result.images_per_s
        n_closed = min(job["epochs"], job.get("n_closed_epochs") or 0)
        terms["mosaic_epochs_s"] = (job["epochs"] - n_closed) * epoch_s
        terms["closed_epochs_s"] = n_closed * epoch_s
    return terms


def job_s(terms: Mapping[str, float | None]) -> float | None:
    """Sum of the known terms in seconds; None while the epochs themselves are unknown."""
    if terms.get("mosaic_epochs_s") is None:
        return None
    return sum(s for s in terms.values() if s is not None)


def with_job(
    result: TrialResult, baseline: TrialResult | None = None, cold_s: Mapping[str, float] | None = None
) -> TrialResult:
    """The same result with `job_terms` and `job_s` filled in."""
    terms = job_terms(result, baseline, cold_s)
    return dataclasses.replace(result, job_terms=terms, job_s=job_s(terms))


def _job_time(result: TrialResult) -> float | None:
    """Seconds of the user's whole job."""
    return result.job_s


def _images_per_s(result: TrialResult) -> float | None:
    """Seconds per image, so that less is better here too."""
    return 1.0 / result.images_per_s if result.images_per_s else None


OBJECTIVES: Final[dict[str, Objective]] = {
    "job_time": _job_time,
    "images_per_s": _images_per_s,
}
"""Name -> number to minimise; None where the trial gave none."""


def check_objective(name: str) -> str:
    """The name, if there is such an objective.

    Raises:
        InputError: there is none; the hint lists them.
    """
    if name not in OBJECTIVES:
        raise InputError(f"unknown objective '{name}'", f"one of: {', '.join(OBJECTIVES)}")
    return name
