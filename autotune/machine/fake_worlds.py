"""What does NVML say on a machine that is well, and on one in trouble? Synthetic scenarios: recorded nowhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, Final

import pynvml

from autotune.machine.fake_nvml import FakeGpu, FakeNvml, FakeProcess, FakeWorld

SWITCH: Final = "0000:c0:00.0"
"""An NVSwitch: no GPU has this address."""
MUST_READ: Final = ("uuid", "pci", "name", "lost", "mem_bytes", "mem_used_bytes")
BUSY: Final[dict[str, Any]] = {
    "util_percent": 97,
    "mem_used_bytes": 40 << 30,
    "power_w": 600.0,
    "sm_hz": 1755e6,
    "reasons": 0,
    "temp_c": 62,
}


def healthy_world(n: int = 2, t_s: float = 0.0, *, busy: bool = False) -> FakeWorld:
    """Synthetic: n H100 in good order behind an NVSwitch, idle or busy, at a second of their time."""
    gpus = []
    for i in range(n):
        gpu = FakeGpu(uuid=f"GPU-{i}", pci=f"0000:{0x1B + 16 * i:02x}:00.0", nvlinks=(SWITCH,) * 18 if n > 1 else None)
        gpu = replace(gpu, **BUSY) if busy else gpu
        gpus.append(replace(gpu, energy_j=1000.0 + (gpu.power_w or 0.0) * t_s))
    return FakeWorld(gpus=tuple(gpus))


def healthy(n: int = 2, clock: Callable[[], float] | None = None, *, busy: bool = False) -> FakeNvml:
    """Synthetic: nothing is wrong. Each GPU's energy counter grows by its power: 70 W idle, 600 W busy."""
    return FakeNvml(lambda t: healthy_world(n, t, busy=busy), clock)


def throttling(n: int = 2, clock: Callable[[], float] | None = None, *, since_s: float = 10.0) -> FakeNvml:
    """Synthetic: n busy GPUs; from a second on, the first is too hot and its hardware lowers the clock."""
    bits = pynvml.nvmlClocksEventReasonHwSlowdown | pynvml.nvmlClocksEventReasonHwThermalSlowdown

    def world(t: float) -> FakeWorld:
        now = healthy_world(n, t, busy=True)
        return now if t < since_s else now.changed(0, reasons=bits, temp_c=93, sm_hz=1200e6)

    return FakeNvml(world, clock)


def lost_in_mid_run(n: int = 2, clock: Callable[[], float] | None = None, *, since_s: float = 10.0) -> FakeNvml:
    """Synthetic: n busy GPUs; at a second the last one falls off the bus."""

    def world(t: float) -> FakeWorld:
        now = healthy_world(n, t, busy=True)
        return now if t < since_s else now.changed(n - 1, lost=True)

    return FakeNvml(world, clock)


def foreign_process(
    n: int = 2, clock: Callable[[], float] | None = None, *, since_s: float = 0.0, pid: int = 4321
) -> FakeNvml:
    """Synthetic: from a second on, somebody else computes on the first of n GPUs that are idle but for him."""

    def world(t: float) -> FakeWorld:
        now = healthy_world(n, t)
        him = FakeProcess(pid=pid, mem_bytes=20 << 30)
        return now if t < since_s else now.changed(0, **BUSY | {"compute": (him,), "mem_used_bytes": 21 << 30})

    return FakeNvml(world, clock)


def mig(n: int = 2) -> FakeNvml:
    """Synthetic: the GPUs are cut into slices; use of a whole one and its links are then not to be had."""
    world = healthy_world(n)
    cut = tuple(replace(g, mig=True, util_percent=None, nvlinks=None) for g in world.gpus)
    pairs = [(a, b) for a in range(n) for b in range(a + 1, n)]
    return FakeNvml(replace(world, gpus=cut, p2p=dict.fromkeys(pairs, pynvml.NVML_P2P_STATUS_GPU_NOT_SUPPORTED)))


def not_supported_everywhere(n: int = 1) -> FakeNvml:
    """Synthetic: GPUs that tell name, address and memory, and nothing else (as some virtual ones)."""
    world = healthy_world(n)
    nothing = {f.name: None for f in fields(FakeGpu) if f.name not in MUST_READ}
    gpus = tuple(replace(g, **nothing) for g in world.gpus)  # type: ignore[arg-type]
    silent = dict.fromkeys((a, b) for a in range(n) for b in range(a + 1, n))
    return FakeNvml(replace(world, gpus=gpus, cuda=None, confidential=None, p2p=silent, paths=silent))


def mismatch() -> FakeNvml:
    """Synthetic: the driver's package was updated, and the kernel still runs the module of the old one."""
    return FakeNvml(FakeWorld(errors={"nvmlInit": "LibRmVersionMismatch"}))
