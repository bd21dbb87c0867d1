"""Is each GPU in order, and ours alone? (KNOBS 4: 9 to 15)"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from autotune.contract import Gpu
from autotune.machine.checks.driver import DRIVER
from autotune.machine.checks.finding import Finding, Subject, ok, unknown
from autotune.machine.checks.judged import answers, each, judged, mute, named, silent
from autotune.machine.memory import spell_size
from autotune.machine.nvml import SLOWED_BY, ask, session

POWER_LEFT: Final = 0.9
"""Of its default power limit; below, the GPU is held back on purpose."""
IDLE_BYTES: Final = 600 << 20
"""More than that is in use on a GPU only when somebody uses it (KNOBS 4)."""
IDLE_PERCENT: Final = 5
RECOVERY: Final = 230
"""NVML_FI_DEV_GET_GPU_RECOVERY_ACTION."""
RECOVERIES: Final = {
    1: "a reset",
    2: "a reboot",
    3: "its peer traffic drained",
    4: "to be drained, and a reset",
    5: "its IMEX domain recovered",
    6: "a reset of its bus",
    7: "a reboot of the system",
}
"""NVML_GPU_RECOVERY_ACTION_*."""
HARDWARE_XIDS: Final = {
    48: "double-bit ECC error",
    62: "its microcontroller stopped",
    63: "memory row remapped or page retired",
    64: "memory row could not be remapped",
    74: "NVLink error",
    79: "fallen off the bus",
    92: "many single-bit ECC errors",
    94: "contained memory error",
    95: "uncontained memory error",
    119: "the GPU's own processor does not answer",
    120: "error of the GPU's own processor",
    140: "unrecovered ECC error",
}
"""Xid -> what it says of the GPU or its memory; others are mostly the fault of a program (docs.nvidia.com/deploy/
xid-errors)."""
PROHIBITED, EXCLUSIVE = 2, 3
"""NVML_COMPUTEMODE_*."""
VGPU: Final = 2
"""NVML_GPU_VIRTUALIZATION_MODE_VGPU."""
NVIDIA_SMI: Final = "nvidia-smi -i N"


def clocks(subject: Subject) -> Finding | None:
    """9: what lowers a clock just now. How it is under load samples.csv says, for every trial."""
    if not judged(subject):
        return None
    said = answers(subject, "nvmlDeviceGetCurrentClocksEventReasons")
    slowed = {g: bits for g, bits in said.items() if bits and any(bits & bit for bit in SLOWED_BY)}
    if slowed:
        causes = [
            (g, ", ".join(dict.fromkeys(c for bit, c in SLOWED_BY.items() if b & bit))) for g, b in slowed.items()
        ]
        return Finding(
            verdict="warn",  # under load it voids a window; here it is a look at one moment
            says=f"{named(slowed)} {'are' if len(slowed) > 1 else 'is'} slowed down before any load",
            evidence=tuple(f"GPU {g.index}: by {cause}" for g, cause in causes),
            remedy="cool it, or mend its power supply: figures would drift with its temperature",
        )
    if silent(said):
        return mute(silent(said), "what lowers the clock")
    return ok("nothing lowers a clock just now; every trial's samples.csv tells it under load")


def power(subject: Subject) -> Finding | None:
    """10: a power limit below the default."""
    gpus = judged(subject)
    if not gpus:
        return None
    told = {g: (g.power_limit_w, g.power_default_w) for g in gpus if g.power_limit_w and g.power_default_w}
    evidence = each(told, lambda g: f"{told[g][0]:.0f} W of {told[g][1]:.0f} W")
    low = [g for g, (w, most) in told.items() if w < POWER_LEFT * most]
    if low:
        says = f"the power limit of {named(low)} is below its default: slower, and often fewer joules an image"
        return Finding(verdict="info", says=says, evidence=evidence, remedy=f"{NVIDIA_SMI} -pl WATTS sets it (root)")
    if len(told) < len(gpus):
        return mute((g for g in gpus if g not in told), "the power limit")
    return ok("the power limits are the defaults", *evidence)


def memory_health(subject: Subject) -> Finding | None:
    """11: memory errors, rows that wait to be remapped, and what the driver itself recommends."""
    if not judged(subject):
        return None
    said = {
        "uncorrectable ECC errors since the driver was loaded": answers(subject, "nvmlDeviceGetTotalEccErrors", 1, 0),
        "remapped rows": answers(subject, "nvmlDeviceGetRemappedRows"),
        "pages to be retired": answers(subject, "nvmlDeviceGetRetiredPagesPendingStatus"),
        "recovery that the driver asks for": _recovery(subject),
    }
    ecc, rows, pages, recovery = said.values()
    faults = [f"GPU {g.index}: {n} uncorrectable memory errors" for g, n in ecc.items() if n]
    faults += [f"GPU {g.index}: a memory row could not be remapped" for g, r in rows.items() if r and r[3]]
    faults += [f"GPU {g.index}: the driver asks for {RECOVERIES.get(a, 'help')}" for g, a in recovery.items() if a]
    waits = [f"GPU {g.index}: a memory row waits for a reset to be remapped" for g, r in rows.items() if r and r[2]]
    waits += [f"GPU {g.index}: memory pages wait for a reset to be retired" for g, p in pages.items() if p]
    if said_so := faults + waits:
        return Finding(
            verdict="fail" if faults else "warn",
            says=f"{said_so[0]}{f', and {len(said_so) - 1} more' * (len(said_so) > 1)}",
            evidence=tuple(said_so),
            remedy="nvidia-smi --gpu-reset (root, nobody on it) or a reboot; if it comes again: service",
        )
    if dumb := [g for g in judged(subject) if all(by[g] is None for by in said.values())]:
        return mute(dumb, "of memory errors: no ECC, or not for this user")
    read = tuple(f"{what}: none on {named(known)}" for what, by in said.items() if (known := _told(by)))
    return ok("no memory errors", *read)


def _told(said: dict[Gpu, Any]) -> list[Gpu]:
    return [g for g, answer in said.items() if answer is not None]


def _recovery(subject: Subject) -> dict[Gpu, int | None]:
    said = answers(subject, "nvmlDeviceGetFieldValues", [RECOVERY])
    return {g: int(v[0].value.uiVal) if v is not None and v[0].nvmlReturn == 0 else None for g, v in said.items()}


def xid(subject: Subject) -> Finding | None:
    """12: what the driver wrote into the kernel's log since the machine came up.

    NVML tells of an Xid only to a program that waits for it while it happens; a trial that fails with one is told so by
    its log (run/signs.py).
    """
    gpus = judged(subject)
    if not gpus:
        return None
    log = subject.host.kernel_log()
    if log is None:
        return unknown("the kernel's log is not for this user", "sudo dmesg | grep Xid")
    found = [(m[1].lower(), int(m[2]), m[0]) for m in re.finditer(r"NVRM: Xid \(PCI:([0-9A-Fa-f:]+)\): (\d+).*", log)]
    ours = {(g.pci or "").rpartition(".")[0]: g for g in gpus}
    found = [(address, code, line) for address, code, line in found if address in ours]
    hard = [(ours[a], code) for a, code, _ in found if code in HARDWARE_XIDS]
    lines = tuple(dict.fromkeys(line[:160] for _, _, line in found))[-4:]
    if hard:
        said = dict.fromkeys(f"GPU {g.index}: Xid {code} ({HARDWARE_XIDS[code]})" for g, code in hard)
        remedy = "nvidia-smi --gpu-reset (root) or a reboot; if it comes again: service"
        return Finding(verdict="warn", says="; ".join(said), evidence=lines, remedy=remedy)
    if found:
        says = f"{len(found)} Xid in the kernel's log, of kinds that programs cause"
        return Finding(verdict="info", says=says, evidence=lines)
    return ok("no Xid in the kernel's log")


def persistence(subject: Subject) -> Finding | None:
    """13: whether the driver keeps the GPU ready while nobody uses it."""
    if not judged(subject):
        return None
    said = answers(subject, "nvmlDeviceGetPersistenceMode")
    off = [g for g, mode in said.items() if mode == 0]
    if off:
        says = f"the driver forgets {named(off)} when nobody uses it: every trial starts seconds later"
        return Finding(verdict="warn", says=says, remedy="sudo nvidia-smi -pm 1, or the nvidia-persistenced service")
    if silent(said):
        return mute(silent(said), "the persistence mode")
    return ok("the driver keeps the GPUs ready")


def others(subject: Subject) -> Finding | None:
    """14: somebody else on the GPU. PIDs are those of the host, and a container may hide them: memory does not lie."""
    if not judged(subject):
        return None
    lists = [answers(subject, f"nvmlDeviceGet{k}RunningProcesses") for k in ("Compute", "MPSCompute", "Graphics")]
    use, used = answers(subject, "nvmlDeviceGetUtilizationRates"), _used(subject)
    by: dict[str, list[Gpu]] = {"computes": [], "holds": [], "draws": []}
    evidence = []
    for g in judged(subject):
        compute, mps, graphics = ([p.pid for p in of[g] or ()] for of in lists)
        busy = 0 if use[g] is None else int(use[g].gpu)
        held = used[g] or 0
        told = [f"processes {_few(compute + mps)}"] if compute or mps else []
        told += [f"a screen is drawn by {_few(graphics)}"] if graphics else []
        told += [f"{spell_size(held)} in use"] if held > IDLE_BYTES else []
        told += [f"busy {busy} % of the time"] if busy > IDLE_PERCENT else []
        if told:
            by["computes" if compute or mps else "draws" if graphics else "holds"].append(g)
            evidence.append(f"GPU {g.index}: {', '.join(told)}")
    if by["computes"]:
        says = f"somebody else computes on {named(by['computes'])}: what is measured there means nothing"
        return Finding(
            verdict="fail", says=says, evidence=tuple(evidence), remedy="wait, or choose another with --gpus"
        )
    if by["holds"]:
        says = f"somebody whom this process does not see seems to use {named(by['holds'])}"
        return Finding(verdict="warn", says=says, evidence=tuple(evidence), remedy="nvidia-smi on the host tells who")
    if by["draws"]:
        says = f"{named(by['draws'])} also draws a screen: figures vary with what is shown"
        return Finding(verdict="info", says=says, evidence=tuple(evidence))
    if dumb := [g for g in judged(subject) if lists[0][g] is None and use[g] is None]:
        return mute(dumb, "who uses it")
    return ok("nobody else uses the GPUs")


def _used(subject: Subject) -> dict[Gpu, int | None]:
    """Bytes in use, without what the driver keeps for itself where it tells them apart."""
    with session(subject.host.nvml) as lib:
        found = {}
        for g in judged(subject):
            handle = ask(lib, "nvmlDeviceGetHandleByUUID", g.uuid)
            second = () if lib is None else (lib.nvmlMemory_v2,)
            memory = ask(lib, "nvmlDeviceGetMemoryInfo", handle, *second) or ask(lib, "nvmlDeviceGetMemoryInfo", handle)
            found[g] = None if memory is None else int(memory.used)
    return found


def _few(pids: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(pids)[:4]))


def mode(subject: Subject) -> Finding | None:
    """15: whether a process may compute on the GPU, and on all of it."""
    gpus = judged(subject)
    if not gpus:
        return None
    modes, virtual = (answers(subject, f"nvmlDeviceGet{k}Mode") for k in ("Compute", "Virtualization"))
    with session(subject.host.nvml) as lib:
        state = ask(lib, "nvmlSystemGetConfComputeState")
    closed = [g for g, m in modes.items() if m == PROHIBITED]
    if closed:
        says = f"nobody may compute on {named(closed)} (compute mode PROHIBITED)"
        return Finding(verdict="fail", says=says, remedy=f"sudo {NVIDIA_SMI} -c DEFAULT")
    cut = [g for g in gpus if g.mig]
    if cut and len(gpus) > 1:
        says = f"{named(cut)} {'are' if len(cut) > 1 else 'is'} cut into slices (MIG): slices do not train together"
        return Finding(verdict="fail", says=says, remedy=f"train on one, or sudo {NVIDIA_SMI} -mig 0")
    if cut:
        says = f"{named(cut)} is cut into slices (MIG): the training gets one of them"
        return Finding(verdict="warn", says=says, remedy=f"sudo {NVIDIA_SMI} -mig 0 makes it whole")
    shared = [g for g, v in virtual.items() if v == VGPU]
    if shared:
        says = f"{named(shared)} is a virtual GPU: others may compute on the same one, unseen"
        return Finding(verdict="warn", says=says, remedy="repeat the search at another hour, or get a whole GPU")
    if state is not None and state.ccFeature:
        says = "confidential computing is on: all that goes to and from a GPU is encrypted, which costs speed"
        return Finding(verdict="info", says=says)
    if silent(modes):
        return mute(silent(modes), "the compute mode")
    alone = [g for g, m in modes.items() if m == EXCLUSIVE]
    evidence = (f"{named(alone)}: one process at a time, which is enough",) if alone else ()
    return ok("whole GPUs, open to compute", *evidence)


GPU: Final[dict[str, Callable[[Subject], Finding | None]]] = {
    **DRIVER,
    "clock slow-down": clocks,  # 9
    "power limit": power,  # 10
    "gpu memory errors": memory_health,  # 11
    "xid": xid,  # 12
    "persistence mode": persistence,  # 13
    "other users": others,  # 14
    "gpu mode": mode,  # 15
}
