"""Which GPUs are there, and how do they reach each other? Facts from NVML and sysfs; nothing here raises."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import combinations
from typing import Any, Final

from autotune.contract import Gpu, GpuLink
from autotune.machine.host import Host
from autotune.machine.nvml import ask, session, text

log = logging.getLogger(__name__)

PATHS: Final = {0: "SAME", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
"""NVML_TOPOLOGY_* -> as `nvidia-smi topo -m` writes it."""
P2P_READ: Final = 0
"""pynvml.NVML_P2P_CAPS_INDEX_READ is the tuple (0,), which ctypes refuses."""
P2P_WRITE: Final = 1
P2P_UNKNOWN: Final = 6
BRIDGE: Final = "0x0680"
"""PCI class of an NVSwitch, as sysfs begins it."""


def read_gpus(host: Host | None = None) -> tuple[Gpu, ...]:
    """All GPUs in NVML's order, which is that of the PCI bus; () without NVML.

    Args:
        host: where to read; None: here. What a GPU does not tell is None in its row.
    """
    host = host or Host()
    found = []
    with session(host.nvml) as lib:
        n_gpus = ask(lib, "nvmlDeviceGetCount") or 0
        for index in range(n_gpus):
            try:
                handle = lib.nvmlDeviceGetHandleByIndex(index)
                known: dict[str, Any] = {
                    "index": index,
                    "uuid": text(lib.nvmlDeviceGetUUID(handle)),
                    "name": text(lib.nvmlDeviceGetName(handle)),
                    "mem_bytes": int(lib.nvmlDeviceGetMemoryInfo(handle).total),
                }
            except lib.NVMLError as e:  # a GPU that fell off the bus is not there
                log.debug("GPU %s does not answer: %s", index, e)
                continue
            found.append(Gpu(**known, **_details(lib, handle, host)))
    return tuple(found)


def read_links(gpus: Sequence[Gpu], host: Host | None = None) -> tuple[GpuLink, ...]:
    """How each two of these GPUs reach each other: their peer access, their NVLinks, their way over PCIe.

    Args:
        gpus: from read_gpus.
        host: as there.
    """
    host = host or Host()
    if len(gpus) < 2:
        return ()
    with session(host.nvml) as lib:
        handles = {g.uuid: ask(lib, "nvmlDeviceGetHandleByUUID", g.uuid) for g in gpus}
        ends = {g.uuid: _far_ends(lib, handles[g.uuid], host) for g in gpus}
        return tuple(
            GpuLink(
                a=a.uuid,
                b=b.uuid,
                p2p=_p2p(lib, handles[a.uuid], handles[b.uuid]),
                n_nvlinks=_n_nvlinks(ends[a.uuid], ends[b.uuid], b.pci),
                path=PATHS.get(ask(lib, "nvmlDeviceGetTopologyCommonAncestor", handles[a.uuid], handles[b.uuid])),
            )
            for a, b in combinations(gpus, 2)
        )


def _details(lib: Any, handle: Any, host: Host) -> dict[str, Any]:
    pci = pci_address(ask(lib, "nvmlDeviceGetPciInfo", handle))
    limit_mw = ask(lib, "nvmlDeviceGetEnforcedPowerLimit", handle)
    default_mw = ask(lib, "nvmlDeviceGetPowerManagementDefaultLimit", handle)
    mig = ask(lib, "nvmlDeviceGetMigMode", handle)
    capability = ask(lib, "nvmlDeviceGetCudaComputeCapability", handle)
    return {
        "capability": None if capability is None else tuple(capability),
        "pci": pci,
        "pcie_gen": ask(lib, "nvmlDeviceGetCurrPcieLinkGeneration", handle),
        "pcie_gen_max": ask(lib, "nvmlDeviceGetMaxPcieLinkGeneration", handle),
        "pcie_width": ask(lib, "nvmlDeviceGetCurrPcieLinkWidth", handle),
        "pcie_width_max": ask(lib, "nvmlDeviceGetMaxPcieLinkWidth", handle),
        "numa_node": _numa_node(pci, host),
        "power_limit_w": None if limit_mw is None else limit_mw / 1000,
        "power_default_w": None if default_mw is None else default_mw / 1000,
        "mig": None if mig is None else bool(mig[0]),
    }


def pci_address(info: Any) -> str | None:
    """As in sysfs; NVML writes eight digits of the domain, in capitals: 00000000:3B:00.0."""
    if info is None:
        return None
    domain, _, rest = text(info.busId).partition(":")
    return f"{int(domain, 16):04x}:{rest}".lower()


def _numa_node(pci: str | None, host: Host) -> int | None:
    """The node of its slot; nvmlDeviceGetNumaNodeId is that of its own memory, where a GPU is a node (Grace)."""
    said = host.read(f"sys/bus/pci/devices/{pci}/numa_node") if pci else None
    return int(said) if said and said.isdigit() else None  # -1: the firmware does not say, as in most virtual machines


def _p2p(lib: Any, a: Any, b: Any) -> bool | None:
    told = [ask(lib, "nvmlDeviceGetP2PStatus", a, b, i) for i in (P2P_READ, P2P_WRITE)]
    return None if None in told or P2P_UNKNOWN in told else told == [0, 0]


def _far_ends(lib: Any, handle: Any, host: Host) -> list[str | None] | None:
    """Of each active NVLink: the PCI address of a GPU, or None for a switch; None when no link tells its state."""
    states = [ask(lib, "nvmlDeviceGetNvLinkState", handle, i) for i in range(lib.NVML_NVLINK_MAX_LINKS)] if lib else []
    if all(s is None for s in states):
        return None
    ends = []
    for link in (i for i, state in enumerate(states) if state):
        pci = pci_address(ask(lib, "nvmlDeviceGetNvLinkRemotePciInfo", handle, link))
        kind = ask(lib, "nvmlDeviceGetNvLinkRemoteDeviceType", handle, link)
        ends.append(None if _is_switch(lib, kind, pci, host) else pci)
    return ends


def _is_switch(lib: Any, kind: int | None, pci: str | None, host: Host) -> bool:
    """In sysfs is a GPU that this container may not see; a switch that a virtual machine does not see is not there."""
    if kind in (lib.NVML_NVLINK_DEVICE_TYPE_GPU, lib.NVML_NVLINK_DEVICE_TYPE_SWITCH):
        return bool(kind == lib.NVML_NVLINK_DEVICE_TYPE_SWITCH)
    return pci is None or (host.read(f"sys/bus/pci/devices/{pci}/class") or BRIDGE).startswith(BRIDGE)


def _n_nvlinks(a: list[str | None] | None, b: list[str | None] | None, b_pci: str | None) -> int | None:
    if a is None or b is None:
        return None
    return sum(end == b_pci for end in a if end) or min(a.count(None), b.count(None))
