"""Which signal ended a process that left no word, and what does that mean? Data only."""

from __future__ import annotations

import signal
from typing import Final

from autotune.contract import Outcome
from autotune.run.signs import SHM, Sign

OOM_KILLED: Final = Sign(
    outcome=Outcome.OOM,
    says="killed by the kernel because host memory ran out",
    hint="fewer workers, cache=False, or a smaller batch_per_gpu",
)
SIGNALS: Final[dict[int, Sign]] = {
    signal.SIGKILL: Sign(
        outcome=Outcome.CRASH,
        says="killed by somebody (SIGKILL); not by the kernel for want of memory",
        hint="autotune did not do it: a job scheduler or an administrator may have; run it again",
    ),
    signal.SIGBUS: Sign(outcome=Outcome.OOM, says="killed by a bus error (SIGBUS)", hint=SHM),
    signal.SIGSEGV: Sign(
        outcome=Outcome.CRASH,
        says="crashed in native code (SIGSEGV)",
        hint="log.txt may have a stack; a library of this environment is broken or does not fit the others",
    ),
    signal.SIGABRT: Sign(
        outcome=Outcome.CRASH,
        says="aborted in native code (SIGABRT)",
        hint="log.txt has the library's own words",
    ),
    signal.SIGILL: Sign(
        outcome=Outcome.CRASH,
        says="stopped at an instruction that this CPU lacks (SIGILL)",
        hint="a library was built for another CPU: reinstall it for this one",
    ),
    signal.SIGTERM: Sign(
        outcome=Outcome.CRASH,
        says="ended by somebody (SIGTERM)",
        hint="autotune did not do it: a job scheduler may have; run it again",
    ),
    signal.SIGINT: Sign(
        outcome=Outcome.CRASH,
        says="interrupted by somebody (SIGINT)",
        hint="autotune did not do it; run it again",
    ),
}
"""Signal that ended the process, when neither records nor log say more."""
