"""What was a trial worth to the search, and how far may that number be believed?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from autotune.contract import Outcome, Params, TrialResult

MAX_DOUBT: Final = 1.3
"""For an unstable trial without an interval; twice the width that makes a trial unstable, and some."""


LAST_S: Final = 1.0
"""Who was stopped with less of the budget left was stopped by its end: a trial gets all that is left of it."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A trial that was started, and what it was worth."""

    result: TrialResult
    changes: Params
    value: float | None
    """Of the objective; None when it gave none."""

    @property
    def number(self) -> int:
        """Its trial number."""
        return self.result.number

    @property
    def failed(self) -> bool:
        """True where the configuration is to blame that there is no measurement."""
        return not self.result.outcome.measured and self.result.outcome is not Outcome.INTERRUPTED

    @property
    def doubt(self) -> float:
        """How much slower an unstable trial may really be: the finalists' places are not for lucky numbers."""
        result = self.result
        if result.outcome is not Outcome.UNSTABLE:
            return 1.0
        if result.images_per_s and result.ci95_lo and result.ci95_lo > 0:
            return min(result.images_per_s / result.ci95_lo, MAX_DOUBT)
        return MAX_DOUBT


def cut_short(result: TrialResult, left_s: float) -> TrialResult:
    """The result; a trial that the end of the budget stopped was interrupted, its configuration is not to blame.

    Args:
        result: of a trial that has just ended.
        left_s: of the budget, for trials.
    """
    if result.outcome is not Outcome.TIMEOUT or left_s > LAST_S or result.role == "baseline":
        return result
    return replace(result, outcome=Outcome.INTERRUPTED)
