"""What happened, told as it happens? Appended to events.jsonl and passed to observers; t_s counts from the start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from autotune.contract.run import NotTried
from autotune.contract.trial import TrialResult
from autotune.contract.words import Params, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """The first event."""

    t_s: float
    headline: str
    folder: str
    budget_s: float
    warnings: tuple[str, ...] = ()
    """What the checks of the machine warned of."""
    kind: Literal["run_started"] = "run_started"


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseStarted:
    """setup, baseline, probes, search, finalists, numerics, report."""

    t_s: float
    phase: str
    note: str = ""
    kind: Literal["phase_started"] = "phase_started"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """What a model expects of a trial before it runs; the interval is of one run, 95 %."""

    value: float
    """In the unit of the objective."""
    lo: float
    hi: float
    mem_bytes: float | None = None
    """Peak of a rank; None: no peak was measured yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialStarted:
    """A process is about to be started."""

    t_s: float
    number: int
    role: Role
    changes: Params
    price_s: float | None
    guess: Guess | None = None
    """None: the strategy has no model, or knows nothing yet."""
    kind: Literal["trial_started"] = "trial_started"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialProgress:
    """Live only, not journaled: what a running trial has measured so far."""

    t_s: float
    number: int
    phase: str
    n_steps: int
    images_per_s: float | None
    kind: Literal["trial_progress"] = "trial_progress"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEnded:
    """A trial has its result."""

    t_s: float
    changes: Params
    result: TrialResult
    kind: Literal["trial_ended"] = "trial_ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSkipped:
    """A proposal that was not started."""

    t_s: float
    not_tried: NotTried
    kind: Literal["trial_skipped"] = "trial_skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """The last event."""

    t_s: float
    exit_code: int
    sentence: str
    also: tuple[str, ...] = ()
    """What else there is to say, a line each."""
    next_commands: tuple[str, ...] = ()
    kind: Literal["run_ended"] = "run_ended"


Event = RunStarted | PhaseStarted | TrialStarted | TrialProgress | TrialEnded | TrialSkipped | RunEnded
Observer = Callable[[Event], None]
