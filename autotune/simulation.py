"""What does a dry run do in place of waiting? It books the seconds that the formula's trials say they took."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any, Final

from autotune.contract import SegmentSettings, TrialDir, TrialResult, TrialSpec
from autotune.run.trial import run_trial
from autotune.search.budget import Budget
from autotune.search.plan import Plan, Watch

TRIALS: Final = 10
REPORT_S: Final = 2.0
REAL_TIME: Final = "AUTOTUNE_SYNTHETIC"
"""For tests of what surrounds a trial: JSON; with `step_s` in it trials take real time (worker/faults.py), short ones
here; `trials` is how many. The budget is then real too."""
SHORT: Final = SegmentSettings(
    warmup_steps=2, warmup_s=0.05, warmup_cap_s=0.2, measure_s=0.3, measure_steps=6, measure_cap_s=0.6
)


def real_time() -> dict[str, Any] | None:
    """What the variable says; None when time is simulated."""
    said: dict[str, Any] = json.loads(os.environ.get(REAL_TIME, "{}"))
    return said if "step_s" in said else None


def simulated(plan: Plan) -> Plan:
    """The plan of a dry run: a few trials, no images."""
    real = real_time()
    if real is None:
        return replace(plan, report_s=REPORT_S, max_trials=TRIALS)
    return replace(plan, max_trials=real.get("trials", TRIALS), segment=SHORT)


class Simulation:
    """Runs trials on the synthetic backend and charges the budget with the seconds that they say they took."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def __call__(
        self, spec: TrialSpec, directory: TrialDir, *, started_s: float, watch: Watch | None = None
    ) -> TrialResult:
        """Run one trial."""
        result = run_trial(spec, directory, started_s=started_s, watch=watch)
        if real_time() is not None:
            return result
        simulated_s = sum(result.phases_s.values())
        self.budget.skip(simulated_s - result.took_s)
        return replace(result, took_s=simulated_s)
