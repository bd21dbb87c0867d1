"""What do the events of a run so far add up to?"""

from __future__ import annotations

import statistics

from autotune.contract import (
    Event,
    Outcome,
    PhaseStarted,
    RunEnded,
    RunStarted,
    TrialEnded,
    TrialProgress,
    TrialResult,
    TrialSkipped,
    TrialStarted,
)

_FINAL_RUNS = 6
"""Runs that the finalists need at least: two configurations, three blocks."""


class State:
    """What the events so far add up to."""

    def __init__(self, objective: str = "job_time") -> None:
        self.objective = objective
        self.headline = self.folder = self.phase = self.phase_note = ""
        self.budget_s = self.now_s = 0.0
        self.ended: list[TrialEnded] = []
        self.running: TrialStarted | None = None
        self.progress: TrialProgress | None = None
        self.n_skipped = 0
        self.over = False

    def add(self, event: Event) -> None:
        """Take one event in."""
        self.now_s = max(self.now_s, event.t_s)
        match event:
            case RunStarted():
                self.headline, self.folder, self.budget_s = event.headline, event.folder, event.budget_s
            case PhaseStarted():
                self.phase, self.phase_note = event.phase, event.note
            case TrialStarted():
                self.running, self.progress = event, None
            case TrialProgress():
                self.progress = event
            case TrialEnded():
                self.running = self.progress = None
                self.ended.append(event)
            case TrialSkipped():
                self.n_skipped += 1
            case RunEnded():
                self.running = self.progress = None
                self.over = True

    @property
    def tried(self) -> list[TrialEnded]:
        """Whole trainings; probes of a part of the step are none."""
        return [e for e in self.ended if e.result.role != "probe"]

    @property
    def baseline(self) -> TrialResult | None:
        """The first measured run of the user's arguments."""
        return next((e.result for e in self.ended if e.result.role == "baseline" and e.result.outcome.measured), None)

    @property
    def best(self) -> TrialEnded | None:
        """The best search trial so far; finalists are for the verdict."""
        done = [e for e in self.ended if e.result.role in ("baseline", "trial") and e.result.images_per_s]
        done = [e for e in done if e.result.outcome.measured]
        if self.objective == "energy":
            counted = [e for e in done if e.result.energy_j_per_image is not None]
            return min(counted, key=lambda e: e.result.energy_j_per_image or 0.0, default=None)
        if self.objective != "images_per_s" and all(e.result.job_s is not None for e in done):
            return min(done, key=lambda e: e.result.job_s or 0.0, default=None)
        return max(done, key=lambda e: e.result.images_per_s or 0.0, default=None)

    def ratio(self, images_per_s: float | None) -> float | None:
        """Against the baseline's images/s."""
        base = self.baseline.images_per_s if self.baseline else None
        return images_per_s / base if images_per_s and base else None

    def n_more(self) -> int | None:
        """Trials that the budget still has time for, at the median price so far and with the finalists kept back."""
        took = [e.result.took_s for e in self.tried]
        if self.over or not took or self.phase not in ("search", ""):
            return None
        typical_s = max(statistics.median(took), 0.1)
        return max(0, int((self.budget_s - self.now_s) / typical_s) - _FINAL_RUNS)

    def counts(self) -> str:
        """`27 ok  4 oom  1 timeout`."""
        n = {o: sum(e.result.outcome is o for e in self.tried) for o in Outcome}
        return "  ".join(f"{count} {o.value}" for o, count in n.items() if count) or "no trial yet"
