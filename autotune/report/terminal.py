"""What does the user see while it runs? A live panel on a terminal, one line a trial elsewhere, JSON for machines."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, Protocol

from rich.console import Console

from autotune.contract import Event
from autotune.report.lines import JsonView, LineView, QuietView
from autotune.report.panel import LiveView
from autotune.report.progress import State

Mode = Literal["auto", "json", "quiet"]


class View(Protocol):
    """An observer with an end."""

    def __call__(self, event: Event) -> None:
        """Show an event."""

    def close(self) -> None:
        """Give the terminal back; may be called more than once."""


def make_view(
    console: Console,
    *,
    mode: Mode = "auto",
    objective: str = "job_time",
    clock: Callable[[], float] = time.monotonic,
) -> View:
    """The view that suits the console: rich.Live shows nothing until its end where there is no terminal (PRODUCT B3).

    Args:
        console: where to write; nothing is printed past it.
        mode: auto (panel or lines), json (one event a line), quiet (the last lines only).
        objective: decides which trial is called best: images_per_s, else the shortest job.
        clock: seconds, for the time between two events.
    """
    if mode == "json":
        return JsonView(console)
    if mode == "quiet":
        return QuietView(console)
    state = State(objective)
    return LiveView(console, state, clock) if console.is_terminal else LineView(console, state)
