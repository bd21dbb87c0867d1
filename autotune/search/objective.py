"""Which number does the search minimise?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from autotune.contract import TrialResult, Verdict
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


def check_objective(name: str) -> str:
    """The name, if there is such an objective.

    Raises:
        InputError: there is none; the hint lists them.
    """
    if name not in OBJECTIVES:
        raise InputError(f"unknown objective '{name}'", f"one of: {', '.join(OBJECTIVES)}")
    return name


_OF_ENERGY: Final = {
    "x in ": "x fewer J per image in ",
    "x faster than": "x fewer J per image than",
    "are faster than": "take fewer J per image than",
    "was faster than": "took fewer J per image than",
    "are faster here": "take fewer J per image here",
    "the speed-up is": "the saving is",
}


def spoken(objective: str, sentence: str) -> str:
    """A sentence that speaks of speed, in the words of what was compared."""
    if objective == "energy":
        for speed, energy in _OF_ENERGY.items():
            sentence = sentence.replace(speed, energy)
    return sentence


def in_words_of(objective: str, verdict: Verdict) -> Verdict:
    """The verdict, which speaks of speed, in the words of what was compared."""
    return replace(verdict, sentence=spoken(objective, verdict.sentence)) if objective == "energy" else verdict
