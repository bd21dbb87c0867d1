"""How much energy did the GPUs take in the measured window? From their own counters, looked at while it runs.

The window's energy is its mean power, by the first and the last look that lie inside it, times its length. So neither
the start-up nor the idle seconds after the last step count. A look comes every quarter of a second (supervise.POLL_S)
and the driver renews the counter every 20 to 100 ms (KNOBS 4): in a window of 10 s, two stale counters are at most 1 %
off and what lies outside the looks, up to half a second, is taken to have the mean power of the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from autotune.contract import RankRecord, TrialResult
from autotune.errors import InputError
from autotune.machine.nvml import energy_counter

LEAST_FRAC: Final = 0.5
"""Looks that span a smaller share of the window than this say nothing about it."""


SIMULATED_W: Final = (80.0, 250.0)
"""Of a simulated GPU that waits for data, and what one that computes takes beyond it."""


def check_energy(objective: str, gpus: Sequence[str], *, simulated: bool, nvml: Any = None) -> None:
    """Refuse objective `energy` where nobody would count it.

    Raises:
        InputError: there is no GPU in this job, or one of its GPUs does not count its energy.
    """
    if objective != "energy" or (simulated and gpus):
        return
    hint = "--objective images_per_s or job_time needs no counter"
    if not gpus:
        raise InputError("--objective energy needs a GPU: only their drivers count energy", hint)
    with energy_counter(gpus, nvml) as joules:
        if joules() is None:
            raise InputError("--objective energy: a GPU here does not count its energy (Volta and newer do)", hint)


def simulated_energy(result: TrialResult, n_gpus: int) -> TrialResult:
    """What a formula says of the energy of a dry run's GPUs."""
    if not n_gpus or result.wait_frac is None or not result.images_per_s:
        return result
    waiting_w, computing_w = SIMULATED_W
    power_w = n_gpus * (waiting_w + computing_w * (1 - result.wait_frac))
    window_s = result.phases_s.get("measure", 0.0)
    return replace(result, energy_j=power_w * window_s, energy_j_per_image=power_w / result.images_per_s)


class Meter:
    """Looks at the counters while a trial runs.

    Args:
        joules: of all GPUs of the trial together since some moment; None where one of them does not count.
        clock: seconds, the clock of RankRecord.began_s.
    """

    def __init__(self, joules: Callable[[], float | None], clock: Callable[[], float] = time.monotonic) -> None:
        self._joules, self._clock = joules, clock
        self.looks: list[tuple[float, float]] = []
        """Seconds by the clock, and joules."""

    def look(self) -> None:
        """Note what the counters say now."""
        joules = self._joules()
        if joules is not None:
            self.looks.append((self._clock(), joules))

    def power_w(self, record: RankRecord) -> float | None:
        """Mean power of all GPUs in a rank's measured window; None where too few looks fell into it."""
        if record.began_s is None or not record.measured_from:
            return None
        start, end = (record.began_s + record.steps.end_s[i] for i in (record.measured_from - 1, -1))
        inside = [look for look in self.looks if start <= look[0] <= end]
        if len(inside) < 2 or inside[-1][0] - inside[0][0] < LEAST_FRAC * (end - start):
            return None
        return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])


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
