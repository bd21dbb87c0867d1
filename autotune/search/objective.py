"""Which number does the search minimise?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from autotune.contract import TrialResult
from autotune.errors import InputError

Objective = Callable[[TrialResult], float | None]


def _job_time(result: TrialResult) -> float | None:
    """Seconds of the user's whole job."""
    return result.job_s


def _images_per_s(result: TrialResult) -> float | None:
    """Seconds per image, so that less is better here too."""
    return 1.0 / result.images_per_s if result.images_per_s else None


def _energy(result: TrialResult) -> float | None:
    """Joules per image, of all GPUs."""
    return result.energy_j_per_image


OBJECTIVES: Final[dict[str, Objective]] = {
    "job_time": _job_time,
    "images_per_s": _images_per_s,
    "energy": _energy,
}
"""Name -> number to minimise; None where the trial gave none."""
BETTER: Final = {"job_time": "faster", "images_per_s": "faster", "energy": "fewer J per image"}
"""Name -> what less of it is, as in `1.5x faster than your settings`."""


def check_objective(name: str) -> str:
    """The name, if there is such an objective.

    Raises:
        InputError: there is none; the hint lists them.
    """
    if name not in OBJECTIVES:
        raise InputError(f"unknown objective '{name}'", f"one of: {', '.join(OBJECTIVES)}")
    return name
