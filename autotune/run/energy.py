"""Can the energy of a job be told here, and how much of it is an image's? What is measured: run/meanwhile.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from autotune.contract import RankRecord, TrialResult
from autotune.errors import InputError
from autotune.machine.gpu_activity import looking_at

INTEGRATED: Final = "a GPU here does not count its energy: joules are summed up from readings of its power"
SIMULATED_W: Final = (80.0, 250.0)
"""Of a simulated GPU that waits for data, and what one that computes takes beyond it."""


def check_energy(objective: str, gpus: Sequence[str], *, simulated: bool, nvml: Any = None) -> tuple[str, ...]:
    """Refuse objective `energy` where nobody could tell it.

    Returns:
        What the user should know of how it is told; () where it is counted, or not asked for.

    Raises:
        InputError: there is no GPU in this job, or one of its GPUs tells neither energy nor power.
    """
    if objective != "energy" or (simulated and gpus):
        return ()
    hint = "--objective images_per_s or job_time needs neither"
    if not gpus:
        raise InputError("--objective energy needs a GPU: only their drivers count energy", hint)
    with looking_at(gpus, nvml) as looker:
        looks = looker.look()
    if any(g.energy_j is None and g.power_w is None for g in looks):
        raise InputError("--objective energy: a GPU here tells neither its energy nor its power", hint)
    return (INTEGRATED,) if any(g.energy_j is None for g in looks) else ()


def simulated_energy(result: TrialResult, n_gpus: int) -> TrialResult:
    """What a formula says of the energy of a dry run's GPUs."""
    if not n_gpus or result.wait_frac is None or not result.images_per_s:
        return result
    waiting_w, computing_w = SIMULATED_W
    power_w = n_gpus * (waiting_w + computing_w * (1 - result.wait_frac))
    window_s = result.phases_s.get("measure", 0.0)
    return replace(result, energy_j=power_w * window_s, energy_j_per_image=power_w / result.images_per_s)


def with_energy(result: TrialResult, record: RankRecord | None, power_w: float | None) -> TrialResult:
    """The result with the energy of its window, and of one image at the throughput that it claims.

    Args:
        result: of a trial.
        record: of rank 0, whose window is that of all ranks; None: it left none.
        power_w: of all its GPUs; None: not measured.
    """
    if record is None or power_w is None or not record.measured_from or not result.images_per_s:
        return result
    window_s = record.steps.end_s[-1] - record.steps.end_s[record.measured_from - 1]
    return replace(result, energy_j=power_w * window_s, energy_j_per_image=power_w / result.images_per_s)
