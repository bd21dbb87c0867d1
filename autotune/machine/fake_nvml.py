"""What would NVML say on a machine that we do not have? A stand-in for the pynvml module, driven by plain data.

Errors and constants are pynvml's own. A function that is not in the tables below raises NVMLError_FunctionNotFound, as
with a driver that is too old for it. Worlds to drive it with: fake_worlds.py.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Final

import pynvml

_RECOVERY: Final = pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION
_FAR_GPU: Final[int] = pynvml.NVML_NVLINK_DEVICE_TYPE_GPU
_FAR_SWITCH: Final[int] = pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeProcess:
    """Somebody on a GPU."""

    pid: int
    mem_bytes: int | None = None
    """None: not told, as in some containers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeGpu:
    """One GPU; a reading that is None raises NVMLError_NotSupported. Defaults: an H100 in good order, and idle."""

    uuid: str
    pci: str
    """As in sysfs: 0000:1b:00.0."""
    name: str = "NVIDIA H100 80GB HBM3"
    lost: bool = False
    """It fell off the bus: every call raises NVMLError_GpuIsLost."""
    mem_bytes: int | None = 80 << 30
    mem_used_bytes: int = 512 << 20
    util_percent: int | None = 0
    power_w: float | None = 70.0
    power_limit_w: float | None = 700.0
    power_default_w: float | None = 700.0
    energy_j: float | None = 1000.0
    sm_hz: float | None = 345e6
    sm_max_hz: float | None = 1980e6
    mem_hz: float | None = 2619e6
    mem_max_hz: float | None = 2619e6
    reasons: int | None = 0x1
    """Idle."""
    temp_c: int | None = 35
    compute: tuple[FakeProcess, ...] | None = ()
    graphics: tuple[FakeProcess, ...] | None = ()
    mps: tuple[FakeProcess, ...] | None = ()
    capability: tuple[int, int] | None = (9, 0)
    pcie_gen: int | None = 5
    pcie_gen_max: int | None = 5
    pcie_width: int | None = 16
    pcie_width_max: int | None = 16
    mig: bool | None = False
    compute_mode: int | None = pynvml.NVML_COMPUTEMODE_DEFAULT
    persistence: bool | None = True
    ecc_uncorrected: int | None = 0
    remapped: tuple[int, int, int, int] | None = (0, 0, 0, 0)
    """Correctable, uncorrectable, one is pending, one failed."""
    retired_pending: bool | None = False
    recovery: int | None = 0
    """Of NVML_GPU_RECOVERY_ACTION_*."""
    virtualization: int | None = 0
    """Of NVML_GPU_VIRTUALIZATION_MODE_*."""
    nvlinks: tuple[str | None, ...] | None = ()
    """PCI address at the other end of each NVLink; None: it is down. A GPU without NVLink has None for all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeWorld:
    """All that NVML knows at one moment."""

    gpus: tuple[FakeGpu, ...] = ()
    driver: str | None = "580.95.05"
    cuda: int | None = 13000
    """The newest CUDA that the driver knows: 1000 major + 10 minor."""
    confidential: int | None = 0
    paths: Mapping[tuple[int, int], int | None] = field(default_factory=dict)
    """Indices of two GPUs, the lower first -> NVML_TOPOLOGY_*; a pair that is not here has NVML_TOPOLOGY_NODE."""
    p2p: Mapping[tuple[int, int], int | None] = field(default_factory=dict)
    """Likewise -> NVML_P2P_STATUS_*; a pair that is not here has OK."""
    errors: Mapping[str, str] = field(default_factory=dict)
    """Name of a function -> what it raises: `LibRmVersionMismatch`."""

    def changed(self, index: int, **fields: Any) -> FakeWorld:
        """The same world, with other fields of one of its GPUs."""
        return replace(self, gpus=tuple(replace(g, **fields) if i == index else g for i, g in enumerate(self.gpus)))


@dataclass(frozen=True, slots=True)
class Handle:
    """Of a device; opaque, as the real one."""

    index: int


class FakeNvml:
    """The module's functions, errors and constants, of a world that may change with time.

    Attributes:
        now_s: the time it shows, when it has no other clock; tests move it, at will or with `sleep`.
        open: how often it was initialised and not shut down.
    """

    def __init__(
        self,
        world: FakeWorld | Callable[[float], FakeWorld],
        clock: Callable[[], float] | None = None,
        *,
        as_bytes: bool = False,
    ) -> None:
        """Args: the world, or what it is at a second; that second's clock; older releases gave bytes for text."""
        self.world = world if callable(world) else lambda _: world
        self.now_s = 0.0
        self.clock = clock or (lambda: self.now_s)
        self.as_bytes = as_bytes
        self.open = 0

    def sleep(self, seconds: float) -> None:
        """Let time pass on its own clock."""
        self.now_s += seconds

    def __getattr__(self, name: str) -> Any:
        real = getattr(pynvml, name)  # AttributeError for what the module does not have
        if not name.startswith("nvml") or not callable(real):
            return real
        return functools.partial(self._call, name)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        world = self.world(self.clock())
        if name in world.errors:
            raise getattr(pynvml, f"NVMLError_{world.errors[name]}")()
        if name in ("nvmlInit", "nvmlInitWithFlags"):
            self.open += 1
            return None
        if not self.open:
            raise pynvml.NVMLError_Uninitialized()
        if name == "nvmlShutdown":
            self.open -= 1
            return None
        if name in _SYSTEM:
            answer = _SYSTEM[name](world, *args)
        elif name in _DEVICES:
            answer = _DEVICES[name](world, *(a.index if isinstance(a, Handle) else a for a in args), **kwargs)
        elif name in _DEVICE:
            answer = _DEVICE[name](_gpu(world, args[0].index), *args[1:], **kwargs)
        else:
            raise pynvml.NVMLError_FunctionNotFound()
        if answer is None:
            raise pynvml.NVMLError_NotSupported()
        return answer.encode() if self.as_bytes and isinstance(answer, str) else answer


def _gpu(world: FakeWorld, index: int) -> FakeGpu:
    if not 0 <= index < len(world.gpus):
        raise pynvml.NVMLError_InvalidArgument()
    if world.gpus[index].lost:
        raise pynvml.NVMLError_GpuIsLost()
    return world.gpus[index]


def _by_index(world: FakeWorld, index: int) -> Handle:
    _gpu(world, index)
    return Handle(index)


def _by_uuid(world: FakeWorld, uuid: str) -> Handle:
    for i, gpu in enumerate(world.gpus):
        if gpu.uuid == uuid:
            return _by_index(world, i)
    raise pynvml.NVMLError_NotFound()


def _pair(world: FakeWorld, a: int, b: int) -> tuple[int, int]:
    _gpu(world, a), _gpu(world, b)
    return min(a, b), max(a, b)


def _p2p(world: FakeWorld, a: int, b: int, index: int) -> int | None:
    if not isinstance(index, int):  # as pynvml.NVML_P2P_CAPS_INDEX_READ, which is a tuple by mistake
        raise ctypes.ArgumentError
    return world.p2p.get(_pair(world, a, b), pynvml.NVML_P2P_STATUS_OK)


def _memory(gpu: FakeGpu, version: int | None = None) -> Any:
    if gpu.mem_bytes is None:
        return None
    free = gpu.mem_bytes - gpu.mem_used_bytes
    return SimpleNamespace(total=gpu.mem_bytes, used=gpu.mem_used_bytes, free=free, reserved=0, version=version)


def _processes(running: tuple[FakeProcess, ...] | None) -> Any:
    if running is None:
        return None
    return [SimpleNamespace(pid=p.pid, usedGpuMemory=p.mem_bytes) for p in running]


def _pci(address: str | None) -> Any:
    """NVML writes eight digits of the domain, in capitals."""
    if address is None:
        return None
    domain, bus, device = address.split(":")
    busid = f"{int(domain, 16):08X}:{bus}:{device}".upper()
    return SimpleNamespace(busId=busid, domain=int(domain, 16), bus=int(bus, 16), device=int(device[:2], 16))


def _nvlink(gpu: FakeGpu, link: int) -> str | None:
    if gpu.nvlinks is None:
        raise pynvml.NVMLError_NotSupported()
    if not 0 <= link < len(gpu.nvlinks):
        raise pynvml.NVMLError_InvalidArgument()
    return gpu.nvlinks[link]


def _far_kind(world: FakeWorld, index: int, link: int) -> int:
    far = _nvlink(_gpu(world, index), link)
    return _FAR_GPU if far in [g.pci for g in world.gpus] else _FAR_SWITCH


def _fields(gpu: FakeGpu, ids: list[int]) -> list[Any]:
    return [_field(i, gpu.recovery if i == _RECOVERY else None) for i in ids]


def _field(field_id: int, value: int | None) -> Any:
    status = pynvml.NVML_ERROR_NOT_SUPPORTED if value is None else pynvml.NVML_SUCCESS
    return SimpleNamespace(fieldId=field_id, nvmlReturn=status, value=SimpleNamespace(uiVal=value or 0))


def _whole(value: float | None, scale: float = 1.0) -> int | None:
    return None if value is None else round(value * scale)


def _mhz(kind: int, sm: float | None, mem: float | None) -> int | None:
    return _whole({pynvml.NVML_CLOCK_SM: sm, pynvml.NVML_CLOCK_MEM: mem}.get(kind), 1e-6)


_SYSTEM: Final[dict[str, Callable[..., Any]]] = {
    "nvmlSystemGetDriverVersion": lambda w: w.driver,
    "nvmlSystemGetCudaDriverVersion_v2": lambda w: w.cuda,
    "nvmlSystemGetConfComputeState": lambda w: (
        None if w.confidential is None else SimpleNamespace(ccFeature=w.confidential)
    ),
    "nvmlDeviceGetCount": lambda w: len(w.gpus),
    "nvmlDeviceGetHandleByIndex": _by_index,
    "nvmlDeviceGetHandleByUUID": _by_uuid,
}

_DEVICES: Final[dict[str, Callable[..., Any]]] = {
    "nvmlDeviceGetTopologyCommonAncestor": lambda w, a, b: w.paths.get(_pair(w, a, b), pynvml.NVML_TOPOLOGY_NODE),
    "nvmlDeviceGetP2PStatus": _p2p,
    "nvmlDeviceGetNvLinkRemoteDeviceType": _far_kind,
}

_DEVICE: Final[dict[str, Callable[..., Any]]] = {
    "nvmlDeviceGetUUID": lambda g: g.uuid,
    "nvmlDeviceGetName": lambda g: g.name,
    "nvmlDeviceGetPciInfo": lambda g: _pci(g.pci),
    "nvmlDeviceGetMemoryInfo": _memory,
    "nvmlDeviceGetUtilizationRates": lambda g: (
        None if g.util_percent is None else SimpleNamespace(gpu=g.util_percent, memory=g.util_percent // 2)
    ),
    "nvmlDeviceGetPowerUsage": lambda g: _whole(g.power_w, 1000),
    "nvmlDeviceGetEnforcedPowerLimit": lambda g: _whole(g.power_limit_w, 1000),
    "nvmlDeviceGetPowerManagementDefaultLimit": lambda g: _whole(g.power_default_w, 1000),
    "nvmlDeviceGetTotalEnergyConsumption": lambda g: _whole(g.energy_j, 1000),
    "nvmlDeviceGetClockInfo": lambda g, kind: _mhz(kind, g.sm_hz, g.mem_hz),
    "nvmlDeviceGetMaxClockInfo": lambda g, kind: _mhz(kind, g.sm_max_hz, g.mem_max_hz),
    "nvmlDeviceGetCurrentClocksEventReasons": lambda g: g.reasons,
    "nvmlDeviceGetTemperature": lambda g, sensor: g.temp_c,
    "nvmlDeviceGetComputeRunningProcesses": lambda g: _processes(g.compute),
    "nvmlDeviceGetGraphicsRunningProcesses": lambda g: _processes(g.graphics),
    "nvmlDeviceGetMPSComputeRunningProcesses": lambda g: _processes(g.mps),
    "nvmlDeviceGetCudaComputeCapability": lambda g: g.capability,
    "nvmlDeviceGetCurrPcieLinkGeneration": lambda g: g.pcie_gen,
    "nvmlDeviceGetMaxPcieLinkGeneration": lambda g: g.pcie_gen_max,
    "nvmlDeviceGetCurrPcieLinkWidth": lambda g: g.pcie_width,
    "nvmlDeviceGetMaxPcieLinkWidth": lambda g: g.pcie_width_max,
    "nvmlDeviceGetMigMode": lambda g: None if g.mig is None else [int(g.mig)] * 2,
    "nvmlDeviceGetComputeMode": lambda g: g.compute_mode,
    "nvmlDeviceGetPersistenceMode": lambda g: _whole(g.persistence),
    "nvmlDeviceGetTotalEccErrors": lambda g, kind, counter: g.ecc_uncorrected,
    "nvmlDeviceGetRemappedRows": lambda g: g.remapped,
    "nvmlDeviceGetRetiredPagesPendingStatus": lambda g: _whole(g.retired_pending),
    "nvmlDeviceGetVirtualizationMode": lambda g: g.virtualization,
    "nvmlDeviceGetFieldValues": _fields,
    "nvmlDeviceGetNvLinkState": lambda g, link: int(_nvlink(g, link) is not None),
    "nvmlDeviceGetNvLinkRemotePciInfo": lambda g, link: _pci(_nvlink(g, link)),
}
