"""Which words do all rooms share? Outcome, site, training class, knob values."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal

FORMAT: Final = 1

Value = bool | int | float | str | None
"""What a knob can be set to; JSON keeps all of them apart."""
Params = dict[str, Value]
"""Knob name -> value."""
Role = Literal["baseline", "probe", "trial", "sentinel", "finalist", "ablation", "train", "trace"]
WARM_ROLES: Final[tuple[Role, ...]] = ("trial", "sentinel", "probe")
"""May be forked by a preloaded parent; baseline, finalists and ablation start as the user's job does."""
PARENT: Final = "AUTOTUNE_PARENT_PID"
"""Environment variable: the process that starts a rank, and without which it must not live."""


class Outcome(StrEnum):
    """How a trial ended (DESIGN 4); every value but `ok` and `unstable` has an `error` line in the result."""

    OK = "ok"
    OOM = "oom"
    TIMEOUT = "timeout"
    CRASH = "crash"
    INVALID = "invalid"
    MISMATCH = "mismatch"
    UNSTABLE = "unstable"
    PRUNED = "pruned"
    INTERRUPTED = "interrupted"

    @property
    def measured(self) -> bool:
        """True where images_per_s is a measurement of what was asked for."""
        return self in (Outcome.OK, Outcome.UNSTABLE)


class Site(StrEnum):
    """Where a knob is set."""

    YOLO_ARG = "YOLO_ARG"
    ENV = "ENV"
    LAUNCH = "LAUNCH"
    PATCH = "PATCH"


class Training(StrEnum):
    """What a knob does to the training: same maths, other rounding, or another optimisation."""

    NEUTRAL = "neutral"
    NUMERICS = "numerics"
    SEMANTICS = "semantics"
