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
Handler = Callable[[int, FrameType | None], Any] | signal.Handlers


class LeaveNow(BaseException):
    """The second interrupt: passes through everything that would still end in good order after the first."""


@dataclass(slots=True)
class Noted:
    """Was there an interrupt?"""

    heard: bool = False


def install() -> None:
    """SIGTERM ends a search as Ctrl-C does: results kept, tree killed. The second of either raises LeaveNow.

    Two KeyboardInterrupts would look like one to whoever is still handling the first.
    """
    noted = Noted()

    def handler(_signal: int, _frame: FrameType | None) -> None:
        if noted.heard:
            raise LeaveNow
        noted.heard = True
        raise KeyboardInterrupt

    _handle(handler)


@contextlib.contextmanager
def deferred(*, heard: bool = False) -> Iterator[Noted]:
    """For the last seconds of a search: an interrupt is noted and the work goes on; the second one leaves.

    Args:
        heard: there was one before, so that the next is the second.
    """
    noted = Noted(heard)

    def handler(_signal: int, _frame: FrameType | None) -> None:
        if noted.heard:
            raise LeaveNow
        noted.heard = True

    with _handled_by(handler):
        yield noted


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """For cleaning up: no interrupt is heard."""
    with _handled_by(signal.SIG_IGN):
        yield


@contextlib.contextmanager
def _handled_by(handler: Handler) -> Iterator[None]:
    before = _handle(handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _handle(handler: Handler) -> dict[signal.Signals, Any]:
    """Install it for both signals; returns the handlers it replaced.

    A shell starts `command &` with SIGINT ignored, and that stays so; Python lets only the main thread do this.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heard = {number: earlier for number, earlier in before.items() if earlier is not signal.SIG_IGN}
    for number in heard:
        signal.signal(number, handler)
    return heard
