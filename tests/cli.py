"""The command line in this process: what it prints and how it exits."""

from __future__ import annotations

import contextlib
import csv
import io
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from autotune.cli import main


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


def autotune(*args: str | Path) -> Said:
    """Run `autotune ARGS` as a user would, without the cost of a process."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    argv = ["autotune", *map(str, args)]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as e:
            code = int(e.code or 0)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return Said(code, out.getvalue(), err.getvalue())


def rows(path: Path) -> list[dict[str, str]]:
    """A CSV file as dicts."""
    with path.open(encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))
