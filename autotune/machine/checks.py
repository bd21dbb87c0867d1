"""Is this machine fit for this job, and what would make it fitter? One function a check, one row in a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from autotune.machine.finding import Finding, Subject
from autotune.machine.model_parallel import model_parallel

CHECKS: Final[dict[str, Callable[[Subject], Finding]]] = {}
"""Milliseconds each; the order is that of KNOBS 4."""

WEIGHED: Final[dict[str, Callable[[Subject], Finding]]] = {
    "model parallel": model_parallel,
}
"""These need Subject.weighed: a process that builds the model, seconds."""


def examine(subject: Subject) -> dict[str, Finding]:
    """Every check that can be made of this subject, by name."""
    rows = CHECKS | (WEIGHED if subject.weighed else {})
    return {name: check(subject) for name, check in rows.items()}
