"""What can be wrong with what the user gave us, or with where we run: one line, a hint, an exit code."""

EXIT_OK = 0
EXIT_BUG = 1
EXIT_INPUT = 2
EXIT_ENVIRONMENT = 3
EXIT_NO_TRIAL = 4
EXIT_INTERRUPTED = 130


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
