"""Is this machine fit for this job, and what would make it fitter? One function a check, one row in a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from autotune.machine.checks_gpu import GPU
from autotune.machine.checks_links import LINKS
from autotune.machine.finding import Finding, Subject
from autotune.machine.model_parallel import model_parallel
from autotune.machine.nvml import session

CHECKS: Final[dict[str, Callable[[Subject], Finding | None]]] = {**GPU, **LINKS}
"""Milliseconds each; the order is that of KNOBS 4. None: it does not apply."""

WEIGHED: Final[dict[str, Callable[[Subject], Finding | None]]] = {
    "model parallel": model_parallel,
}
"""These need Subject.weighed: a process that builds the model, seconds."""


def examine(subject: Subject) -> dict[str, Finding]:
    """Every check that applies to this subject, by name."""
    rows = CHECKS | (WEIGHED if subject.weighed else {})
    with session(subject.host.nvml):  # open for all of them: without persistence, each opening takes seconds a GPU
        findings = {name: check(subject) for name, check in rows.items()}
    return {name: finding for name, finding in findings.items() if finding is not None}
