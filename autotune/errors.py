"""What can be wrong with what the user gave us, or with where we run: one line, a hint, an exit code."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Final

EXIT_OK = 0
EXIT_BUG = 1
EXIT_INPUT = 2
EXIT_ENVIRONMENT = 3
EXIT_NO_TRIAL = 4
EXIT_RECHECK = 5
EXIT_INTERRUPTED = 130
STORAGE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
"""What a full or broken disk says, whatever was being written."""
FREE_SOME: Final = "is the disk full, or the folder gone? What was measured is kept: go on with --resume"


class AutotuneError(Exception):
    """Something the user can mend. Printed as `error: MESSAGE` and `hint: HINT`, never with a traceback.

    Args:
        message: what is wrong, one line (a space file may have one line a fault).
        hint: what to do about it, one line; empty when the message says it all.
    """

    exit_code = EXIT_INPUT

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(AutotuneError):
    """A flag, a key=value, a space file, a dataset or a model that cannot be used."""


class MachineError(AutotuneError):
    """The machine cannot do what was asked (a missing library, an unusable folder)."""

    exit_code = EXIT_ENVIRONMENT


class NoTrialError(AutotuneError):
    """Not one trial succeeded; the hint names the reasons."""

    exit_code = EXIT_NO_TRIAL


class FormatError(AutotuneError):
    """A file of ours that is damaged, or was written by a newer autotune."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """A file of ours that cannot be written is the user's business: OSError becomes MachineError."""
    try:
        yield
    except OSError as e:
        raise MachineError(f"cannot write {path}: {e.strerror}", FREE_SOME) from e


@contextlib.contextmanager
def on_disk(what: str) -> Iterator[None]:
    """As `writing`, around work that does more than to write: only what a disk alone can say becomes MachineError."""
    try:
        yield
    except OSError as e:
        if e.errno not in STORAGE:
            raise
        raise MachineError(f"cannot write {e.filename or what}: {e.strerror}", FREE_SOME) from e
