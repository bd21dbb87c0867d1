"""What does a dry run do in place of waiting? It books the seconds that the formula's trials say they took."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from typing import Any, Final

from autotune.contract import Gpu, Role, SegmentSettings, TrialDir, TrialResult, TrialSpec, write_json
from autotune.errors import InputError
from autotune.run.energy import simulated_energy
from autotune.search.budget import Budget
from autotune.search.plan import Plan, RunTrial, Watch

GPU_BYTES: Final = 16 << 30
"""Memory of a simulated GPU."""
ALL_GPUS: Final = 4
"""That `--gpus all` finds."""
MOST_GPUS: Final = 1024
TRIALS: Final = 10
REPORT_S: Final = 2.0
REAL_TIME: Final = "AUTOTUNE_SYNTHETIC"
"""JSON. `machine` and `machine_seed` name another simulated machine than the dry run's (worker/machines_draw.py).
For tests of what surrounds a trial: with `step_s` in it trials take real time (worker/faults.py), short ones
here. The budget is then real too. `trials` is how many; `deadlines` are some of contract.Deadlines; `faults` maps
"ROLE N", the Nth trial of that role (those that repeat the baseline not counted), to the fault it commits."""
SHORT: Final = SegmentSettings(
    warmup_steps=2, warmup_s=0.05, warmup_cap_s=0.2, measure_s=0.3, measure_steps=6, measure_cap_s=0.6
)


def real_time() -> dict[str, Any] | None:
    """What the variable says; None when time is simulated."""
    said = _said()
    return said if "step_s" in said else None


def _said() -> dict[str, Any]:
    said: dict[str, Any] = json.loads(os.environ.get(REAL_TIME, "{}"))
    return said


def simulated_gpus(flag: str) -> tuple[Gpu, ...]:
    """As many GPUs as this --gpus needs, on a machine that has none."""
    indices = [int(i) for i in flag.split(",") if i.strip().isdecimal()]
    n = max(indices) + 1 if "," in flag and indices else indices[0] if indices else ALL_GPUS
    if n > MOST_GPUS:
        raise InputError(f"--gpus {flag}: a dry run simulates {MOST_GPUS} GPUs at most")
    return tuple(Gpu(index=i, uuid=f"GPU-simulated-{i}", name="simulated GPU", mem_bytes=GPU_BYTES) for i in range(n))


def simulated(plan: Plan) -> Plan:
    """The plan of a dry run: a few trials, no images."""
    real = real_time()
    if real is None:
        return replace(plan, report_s=REPORT_S, max_trials=TRIALS)
    deadlines = replace(plan.deadlines, **real.get("deadlines", {}))
    return replace(plan, max_trials=real.get("trials", TRIALS), segment=SHORT, deadlines=deadlines)


def in_one_process(
    run_trial: RunTrial, spec: TrialSpec, directory: TrialDir, *, started_s: float, watch: Watch | None = None
) -> TrialResult:
    """Run a trial of the synthetic backend; one process answers for all ranks, unless its steps take real time.

    The formula needs no launcher, and nobody waits for four imports. spec.json says what was asked, not how.
    """
    asked = spec.train_args.get("synthetic") or _said()
    if spec.n_ranks == 1 or real_time() is not None or asked.keys() & {"step_s", "fault", "n_ranks"}:
        return run_trial(spec, directory, started_s=started_s, watch=watch)
    args = {**spec.train_args, "synthetic": {**asked, "n_ranks": spec.n_ranks}}
    alone = replace(spec, n_ranks=1, train_args=args)
    result = run_trial(alone, directory, started_s=started_s, watch=watch)
    write_json(directory.spec, spec)
    return result


class Simulation:
    """Has trials of the synthetic backend run, and charges the budget with the seconds that they say they took.

    Args:
        budget: of the search.
        run_trial: runs them, as it would run real ones.
    """

    def __init__(self, budget: Budget, run_trial: RunTrial) -> None:
        self.budget = budget
        self._run_trial = run_trial
        self._n: Counter[Role] = Counter()

    def __call__(
        self, spec: TrialSpec, directory: TrialDir, *, started_s: float, watch: Watch | None = None
    ) -> TrialResult:
        """Run one trial."""
        real = real_time()
        if real is not None:
            return self._run_trial(self._with_fault(spec, real), directory, started_s=started_s, watch=watch)
        result = in_one_process(self._run_trial, spec, directory, started_s=started_s, watch=watch)
        simulated_s = sum(result.phases_s.values())
        self.budget.skip(simulated_s - result.took_s)
        return simulated_energy(replace(result, took_s=simulated_s), len(spec.gpus))

    def _with_fault(self, spec: TrialSpec, real: dict[str, Any]) -> TrialSpec:
        if not spec.changes and spec.role != "baseline":
            return spec
        self._n[spec.role] += 1
        fault = real.get("faults", {}).get(f"{spec.role} {self._n[spec.role]}")
        if fault is None:
            return spec
        return replace(spec, train_args={**spec.train_args, "synthetic": {"step_s": real["step_s"], **fault}})
