"""Can a compile repay within the user's job? One that cannot is not tried."""

from __future__ import annotations

from typing import Final

from autotune.contract import Params
from autotune.search.situation import Situation

MOST_FRAC: Final = 0.5
"""Of the steps' time that a compile saves at most: 44 % is the most that was seen (resnet50, batch 1, KNOBS 1.2)."""
STEPS: Final = ("mosaic_epochs_s", "closed_epochs_s")


def why_not(s: Situation, params: Params) -> str | None:
    """Why a configuration that compiles is left out; None: it may repay, or it does not compile."""
    if s.objective != "job_time" or not params.get("compile") or s.baseline.result.params.get("compile"):
        return None
    measured = [r.result for r in s.ran if r.result.outcome.measured and r.result.job_s is not None]
    if not measured:
        return None
    best = min(measured, key=lambda result: result.job_s or 0.0)
    steps_s = sum(best.job_terms.get(term) or 0.0 for term in STEPS)
    compile_s = s.cold(params).compile_s
    if compile_s <= MOST_FRAC * steps_s:
        return None
    return f"compiling takes about {compile_s:.0f} s, all steps of your job {steps_s:.0f} s: it cannot repay"
