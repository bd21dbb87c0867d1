"""How much of the user's time is left, and where did the rest go?"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

from autotune.contract import Role
from autotune.errors import InputError

Purpose = Literal[
    "setup", "baseline", "trials_ok", "trials_lost", "sentinels", "probes", "finalists", "report", "accuracy"
]
PURPOSES: Final[tuple[Purpose, ...]] = (
    "setup",
    "baseline",
    "trials_ok",
    "trials_lost",
    "sentinels",
    "probes",
    "finalists",
    "report",
    "accuracy",
)
PURPOSE_OF: Final[dict[Role, Purpose]] = {
    "baseline": "baseline",
    "sentinel": "sentinels",
    "probe": "probes",
    "finalist": "finalists",
    "ablation": "finalists",
}
"""What the seconds of a trial are for; those of the other roles are trials_ok or trials_lost."""
_UNIT_S: Final = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_HINT: Final = "write it like 90s, 30m, 2h or 1h30m"
_SHAPE: Final = re.compile("".join(rf"(?:(?P<{unit}>\d+(?:\.\d+)?){unit})?" for unit in _UNIT_S))


def parse_budget(text: str, flag: str = "--budget") -> float:
    """`90s`, `30m`, `2h`, `1h30m`, `1.5h` -> seconds.

    Raises:
        InputError: not of that form, zero or negative.
    """
    match = _SHAPE.fullmatch(text.strip().lower().replace(" ", ""))
    if match is None or not any(match.groupdict().values()):
        raise InputError(f"{flag} {text!r} is not a time", _HINT)
    seconds = sum(float(n) * _UNIT_S[unit] for unit, n in match.groupdict().items() if n)
    if not 0 < seconds < float("inf"):
        raise InputError(f"{flag} {text!r} leaves no time", _HINT)
    return seconds


@dataclass(slots=True)
class Spending:
    """What one `with budget.spend(...)` is for; may be changed until it ends, when only the outcome tells."""

    purpose: Purpose


class Budget:
    """One deadline from Enter to report, and a ledger of seconds by purpose.

    Args:
        total_s: everything that the user gave, in seconds.
        clock: monotonic seconds; tests pass their own.
        started: what the clock said at Enter, when that was before this object was made.
    """

    def __init__(
        self, total_s: float, clock: Callable[[], float] = time.monotonic, started: float | None = None
    ) -> None:
        self.total_s = total_s
        self._clock = clock
        self._start = clock() if started is None else started
        self._skipped_s = 0.0
        self._spent: dict[Purpose, float] = dict.fromkeys(PURPOSES, 0.0)

    def elapsed_s(self) -> float:
        """Seconds since Enter."""
        return self._now() - self._start

    def skip(self, seconds: float) -> None:
        """Move on by simulated seconds, inside or outside of a `spend` block."""
        self._skipped_s += seconds

    def _now(self) -> float:
        return self._clock() + self._skipped_s

    def left_s(self) -> float:
        """Seconds left, not below zero."""
        return max(0.0, self.total_s - self.elapsed_s())

    @contextmanager
    def spend(self, purpose: Purpose) -> Iterator[Spending]:
        """Book the seconds of the block, also when it raises. Blocks must not be nested."""
        spending = Spending(purpose)
        begin = self._now()
        try:
            yield spending
        finally:
            self._spent[spending.purpose] += self._now() - begin

    def book(self, purpose: Purpose, seconds: float) -> None:
        """Book seconds that were spent before this object was made."""
        self._spent[purpose] += seconds

    def ledger(self) -> dict[str, float]:
        """Purpose -> seconds (contract Summary.ledger_s); `overhead` is what nobody booked, so that all sums up."""
        booked: dict[str, float] = {str(purpose): spent_s for purpose, spent_s in self._spent.items()}
        return booked | {"overhead": max(0.0, self.elapsed_s() - sum(booked.values()))}
