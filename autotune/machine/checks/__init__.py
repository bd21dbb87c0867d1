"""Is this machine fit for this job, and what would make it fitter? One function a check, one row in a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from autotune.machine.checks.cpu import CPU
from autotune.machine.checks.data import DATA
from autotune.machine.checks.finding import Finding, Subject
from autotune.machine.checks.gpu import GPU
from autotune.machine.checks.links import LINKS
from autotune.machine.checks.memory import MEMORY
from autotune.machine.checks.model_parallel import model_parallel
from autotune.machine.checks.network import NETWORK
from autotune.machine.checks.software import SOFTWARE
from autotune.machine.nvml import session

Checks = Mapping[str, Callable[[Subject], Finding | None]]

CHECKS: Final[Checks] = {**GPU, **LINKS, **MEMORY, **CPU, **DATA, **SOFTWARE, **NETWORK}
"""Milliseconds each; the order is that of KNOBS 4. None: it does not apply."""

WEIGHED: Final[Checks] = {
    "model parallel": model_parallel,
}
"""These need Subject.weighed: a process that builds the model, seconds."""


def examine(subject: Subject, checks: Checks = CHECKS) -> dict[str, Finding]:
    """What these checks say of a subject, by name; one that does not apply is left out."""
    with session(subject.host.nvml):  # open for all of them: without persistence, each opening takes seconds a GPU
        findings = {name: check(subject) for name, check in checks.items()}
    return {name: finding for name, finding in findings.items() if finding is not None}
