"""What does a replay do in place of measuring? It answers with recorded runs, and charges the time that they took."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from autotune.contract import Outcome, Role, StepColumns, TrialDir, TrialResult, TrialSpec, write_json
from autotune.recording import COLUMNS, Recorded, Recording
from autotune.run.statistics import quantile
from autotune.run.watch import WATCH_S, Live
from autotune.search.plan import RunTrial, Watch
from autotune.search.proposals import NOT_RECORDED, key_of


class Replay:
    """Answers trials from a recording (search.plan.RunTrial).

    A configuration with several runs answers with one a call: of the same role where there are such, else any that was
    measured; those used least first, in an order drawn by the seed.

    Args:
        recording: the answers.
        charge: told the seconds that each took.
        seed: draws the order of the runs of each configuration.
    """

    def __init__(self, recording: Recording, charge: Callable[[float], object], seed: int) -> None:
        self.recording = recording
        self._charge = charge
        self._seed = seed
        self._ordered: dict[str, tuple[Recorded, ...]] = {}
        self._used: Counter[int] = Counter()

    def __call__(
        self, spec: TrialSpec, directory: TrialDir, *, started_s: float, watch: Watch | None = None
    ) -> TrialResult:
        """The answer to one trial; INVALID where none was recorded."""
        run = self._choose(spec)
        if run is None:
            result = _failed(spec, Outcome.INVALID, 0.0, NOT_RECORDED)
        elif run.result.took_s > (limit_s := spec.deadlines.total_s):
            error = (
                f"still running after {limit_s:.0f} s, its deadline: the recorded run took {run.result.took_s:.0f} s"
            )
            result = _failed(spec, Outcome.TIMEOUT, limit_s, error)
        else:
            result = _raced(run, watch) if spec.role == "trial" and watch is not None else run.result
        self._charge(result.took_s)
        # Nobody looked at the machine now; and what voided a recorded window was dealt with when it was recorded.
        return replace(
            result, number=spec.number, role=spec.role, params=spec.params, started_s=started_s, meanwhile=None
        )

    def _choose(self, spec: TrialSpec) -> Recorded | None:
        key = key_of(spec.params)
        if spec.probe is not None:
            pool = self.recording.probes.get((spec.probe, key), ())
        else:
            pool = _of_role(self._in_order(key), spec.role)
        if not pool:
            return None
        run = min(pool, key=lambda r: self._used[id(r)])
        self._used[id(run)] += 1
        return run

    def _in_order(self, key: str) -> tuple[Recorded, ...]:
        if key not in self._ordered:
            runs = list(self.recording.cells.get(key, ()))
            random.Random(f"{self._seed} {key}").shuffle(runs)
            self._ordered[key] = tuple(runs)
        return self._ordered[key]


def _of_role(runs: tuple[Recorded, ...], role: Role) -> tuple[Recorded, ...]:
    alike = tuple(r for r in runs if r.result.role == role)
    measured = tuple(r for r in runs if r.result.outcome.measured)
    return alike or measured or runs


def _failed(spec: TrialSpec, outcome: Outcome, took_s: float, error: str) -> TrialResult:
    return TrialResult(
        number=spec.number,
        role=spec.role,
        probe=spec.probe,
        outcome=outcome,
        params=spec.params,
        started_s=0.0,
        took_s=took_s,
        error=error,
    )


def _raced(run: Recorded, watch: Watch) -> TrialResult:
    """The result, with racing: looked at as often as a running trial is, and stopped where the watch says so."""
    steps, result = run.steps, run.result
    looked_s = steps.end_s[0] if steps.end_s else 0.0
    for n in range(2, len(steps.end_s)):
        if steps.end_s[n - 1] - looked_s < WATCH_S:
            continue
        looked_s = steps.end_s[n - 1]
        so_far = StepColumns(**{name: getattr(steps, name)[:n] for name in (*COLUMNS, "ready")})
        left_s = steps.end_s[-1] - looked_s
        live = Live(phase="measuring", steps=so_far, n_steps=n, elapsed_s=max(0.0, result.took_s - left_s))
        if (reason := watch(live)) is not None:
            return _stopped(result, so_far, left_s, reason)
    return result


def _stopped(result: TrialResult, steps: StepColumns, left_s: float, reason: str) -> TrialResult:
    """The result as it would be, had its window ended here, `left_s` seconds before its end."""
    window, ordered = steps.throughput(1), sorted(steps.step_s[1:])
    half = window.half_width_frac if window else None
    rate = window.images_per_s if window else result.images_per_s
    return replace(
        result,
        outcome=Outcome.PRUNED,
        error=reason,
        took_s=max(0.0, result.took_s - left_s),
        images_per_s=rate,
        ci95_lo=rate * (1 - half) if rate and half is not None else None,
        ci95_hi=rate * (1 + half) if rate and half is not None else None,
        step_p50_s=quantile(ordered, 0.5),
        step_p90_s=quantile(ordered, 0.9),
        step_p99_s=quantile(ordered, 0.99),
        n_steps=len(ordered),
        phases_s={**result.phases_s, "measure": max(0.0, result.phases_s.get("measure", 0.0) - left_s)},
    )


def with_specs(run_trial: RunTrial) -> RunTrial:
    """The same, which leaves the spec.json that a trial leaves: the report reads it."""

    def run(spec: TrialSpec, directory: TrialDir, *, started_s: float, watch: Watch | None = None) -> TrialResult:
        write_json(directory.spec, spec)
        return run_trial(spec, directory, started_s=started_s, watch=watch)

    return run
