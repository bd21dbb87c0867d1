"""What does Ctrl-C do? Once: end with what there is; twice: leave at once; never in the middle of cleaning up."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@dataclass(slots=True)
class Noted:
    """Was there an interrupt?"""

    heard: bool = False


def terminate_as_interrupt() -> None:
    """SIGTERM ends a search as Ctrl-C does: results kept, tree killed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextlib.contextmanager
def deferred(*, heard: bool = False) -> Iterator[Noted]:
    """For the last seconds of a search: an interrupt is noted and the work goes on; the second one leaves.

    Args:
        heard: there was one before, so that the next is the second.
    """
    noted = Noted(heard)

    def handler(_signal: int, _frame: FrameType | None) -> None:
        if noted.heard:
            raise KeyboardInterrupt
        noted.heard = True

    with _handled_by(handler):
        yield noted


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """For cleaning up: no interrupt is heard."""
    with _handled_by(signal.SIG_IGN):
        yield


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], Any] | signal.Handlers) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread only
        return
    # A shell starts `command &` with SIGINT ignored; that stays so.
    before = {s: h for s in SIGNALS if (h := signal.getsignal(s)) is not signal.SIG_IGN}
    try:
        for s in before:
            signal.signal(s, handler)
        yield
    finally:
        for s, h in before.items():
            signal.signal(s, h)
