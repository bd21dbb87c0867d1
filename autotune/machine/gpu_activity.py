"""How busy are these GPUs, and who computes on them? NVML, open for as long as somebody looks; every reading optional.

nvmlDeviceGetPcieThroughput is never asked: it blocks for 20 ms (KNOBS 7).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from autotune.machine.nvml import handle_of, session

log = logging.getLogger(__name__)

NEVER: Final = (3, 4, 13)
"""NVML_ERROR_NOT_SUPPORTED, _NO_PERMISSION, _FUNCTION_NOT_FOUND: asked again, it would say the same."""
LOST: Final = 15
"""NVML_ERROR_GPU_IS_LOST: it fell off the bus, and does not come back without a reboot."""
SM, MEM, DIE = 1, 2, 0
"""NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuActivity:
    """One look at one GPU, in the order of GPU_COLUMNS; None where it does not say."""

    util_frac: float | None = None
    """Of the last sixth of a second to second, the time in which some kernel ran."""
    mem_bytes: int | None = None
    power_w: float | None = None
    sm_hz: float | None = None
    mem_hz: float | None = None
    reasons: int | None = None
    temp_c: float | None = None
    energy_j: float | None = None
    """Since its driver was loaded (Volta and newer)."""


_READ: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "util_frac": lambda lib, h: lib.nvmlDeviceGetUtilizationRates(h).gpu / 100,
    "mem_bytes": lambda lib, h: int(lib.nvmlDeviceGetMemoryInfo(h).used),
    "power_w": lambda lib, h: lib.nvmlDeviceGetPowerUsage(h) / 1e3,
    "sm_hz": lambda lib, h: lib.nvmlDeviceGetClockInfo(h, SM) * 1e6,
    "mem_hz": lambda lib, h: lib.nvmlDeviceGetClockInfo(h, MEM) * 1e6,
    "reasons": lambda lib, h: int(lib.nvmlDeviceGetCurrentClocksEventReasons(h)),
    "temp_c": lambda lib, h: float(lib.nvmlDeviceGetTemperature(h, DIE)),
    "energy_j": lambda lib, h: lib.nvmlDeviceGetTotalEnergyConsumption(h) / 1e3,
}


class Gpus:
    """Looks at some GPUs.

    Args:
        lib: NVML between init and shutdown; None: there is none, and nothing is said.
        gpus: entries of CUDA_VISIBLE_DEVICES: index in PCI order, or UUID.
    """

    def __init__(self, lib: Any, gpus: Sequence[str]) -> None:
        self._lib = lib
        self._handles: dict[str, Any] = {}
        self._silent: set[tuple[str, str]] = set()
        self.gpus = tuple(gpus)
        for gpu in self.gpus if lib else ():
            try:
                self._handles[gpu] = handle_of(lib, gpu)
            except lib.NVMLError as e:
                log.debug("GPU %s does not answer: %s", gpu, e)

    def look(self) -> tuple[GpuActivity, ...]:
        """One a GPU, in their order."""
        return tuple(
            GpuActivity(**{name: self._ask(gpu, name, read) for name, read in _READ.items()}) for gpu in self.gpus
        )

    def users(self) -> dict[str, frozenset[int]]:
        """GPU -> processes that compute on it, by the PIDs of the host; without those that do not say."""
        asked = {gpu: self._ask(gpu, "users", _users) for gpu in self.gpus}
        return {gpu: pids for gpu, pids in asked.items() if pids is not None}

    def _ask(self, gpu: str, name: str, read: Callable[[Any, Any], Any]) -> Any:
        """A reading; None where it is not to be had."""
        if gpu not in self._handles or (gpu, name) in self._silent:
            return None
        try:
            return read(self._lib, self._handles[gpu])
        except AttributeError:  # an older pynvml has no such function
            self._silent.add((gpu, name))
            return None
        except self._lib.NVMLError as e:
            if e.value == LOST:
                log.warning("GPU %s is lost: it fell off the bus (%s)", gpu, e)
                del self._handles[gpu]
            elif e.value in NEVER:
                self._silent.add((gpu, name))
            return None


def _users(lib: Any, handle: Any) -> frozenset[int]:
    return frozenset(p.pid for p in lib.nvmlDeviceGetComputeRunningProcesses(handle))


@contextmanager
def looking_at(gpus: Sequence[str], nvml: Any = None) -> Iterator[Gpus]:
    """NVML stays open between looks; it is not touched when there is nothing to look at.

    Args:
        gpus: as in Gpus.
        nvml: the pynvml module, or a fake of it.
    """
    if not gpus:
        yield Gpus(None, ())
        return
    with session(nvml) as lib:
        yield Gpus(lib, gpus)
