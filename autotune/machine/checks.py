"""Is this machine fit for this job, and what would make it fitter? One function a check, one row in a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from autotune.machine.checks_cpu import CPU
from autotune.machine.checks_data import DATA, READS
from autotune.machine.checks_memory import MEMORY
from autotune.machine.checks_network import NETWORK
from autotune.machine.checks_software import SOFTWARE
from autotune.machine.finding import Finding, Subject
from autotune.machine.model_parallel import model_parallel

CHECKS: Final[dict[str, Callable[[Subject], Finding | None]]] = {**MEMORY, **CPU, **DATA, **SOFTWARE, **NETWORK}
"""Milliseconds each; the order is that of KNOBS 4. None: it does not apply."""

WEIGHED: Final[dict[str, Callable[[Subject], Finding | None]]] = {
    "model parallel": model_parallel,
}
"""These need Subject.weighed: a process that builds the model, seconds."""


def examine(subject: Subject, *, reads: bool = False) -> dict[str, Finding]:
    """Every check that applies to this subject, by name.

    Args:
        subject: what is examined.
        reads: also those that read the dataset's files, for seconds.
    """
    rows = CHECKS | (READS if reads else {}) | (WEIGHED if subject.weighed else {})
    findings = {name: check(subject) for name, check in rows.items()}
    return {name: finding for name, finding in findings.items() if finding is not None}
