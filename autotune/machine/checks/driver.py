"""Is there a GPU, and can this torch drive it? (KNOBS 4: 1 to 5)"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from typing import Final

from autotune.contract import Gpu
from autotune.machine.checks.finding import Finding, Subject, ok, unknown
from autotune.machine.checks.judged import each, judged, mute, named
from autotune.machine.nvml import ask, refusal, session

NVIDIA: Final = "0x10de"
DISPLAY: Final = "0x03"
"""PCI class of every GPU, as sysfs begins it."""
LEAST_DRIVER: Final = {13: 580, 12: 525, 11: 450}
"""CUDA's major version -> the oldest driver branch (docs.nvidia.com/deploy/cuda-compatibility, minor-version)."""
MINOR: Final = "within a major version that is enough, but for PTX compiled at run time and for some new features"
WHERE: Final = "(PyTorch's page `Get Started` has the command)"
OLDER_BUILD: Final = f"torch's build for CUDA 12.6 {WHERE}"
BUILT_FOR: Final[dict[str, dict[str, frozenset[int]]]] = {
    "12.6": {"x86_64": frozenset({50, 60, 70, 75, 80, 86, 90}), "aarch64": frozenset({80, 90})},
    "13.0": {"x86_64": frozenset({75, 80, 86, 90, 100, 120}), "aarch64": frozenset({80, 90, 100, 110, 120})},
    "13.2": {"x86_64": frozenset({75, 80, 86, 90, 100, 120}), "aarch64": frozenset({80, 90, 100, 110, 120})},
    "13.4": {"x86_64": frozenset({75, 80, 86, 90, 100, 120}), "aarch64": frozenset({80, 90, 100, 110, 120})},
}
"""CUDA of torch's wheel -> the host's processor -> compute capabilities with code in it, ten times
(torch.cuda.PYTORCH_RELEASES_CODE_CC of torch 2.15)."""
AMP_IS_OFF: Final = re.compile(
    r"(nvidia|geforce|quadro|tesla).*?(1660|1650|1630|t400|t550|t600|t1000|t1200|t2000|k40m)", re.IGNORECASE
)
"""Where Ultralytics trains without AMP, whatever is asked: NaN losses (check_amp of 8.4.190)."""
SHADOWS: Final = re.compile(r"lib(nccl|cudnn)\.so")


def gpu(subject: Subject) -> Finding:
    """2, and whether there is one at all, and whether all that are there answer."""
    cards, no = cards_on_the_bus(subject), refusal(subject.host.nvml)
    none_here = "no NVIDIA GPU: the training runs on the CPU"
    if no is not None and "LibRmVersionMismatch" in type(no).__name__:
        says = "the driver was updated while its old kernel module is loaded: no program can use a GPU"
        return Finding(verdict="fail", says=says, evidence=(str(no),), remedy="reboot, or reload the nvidia modules")
    if no is not None and cards:
        says = "NVIDIA's driver does not answer, and the machine has GPUs of NVIDIA: the training runs on the CPU"
        remedy = "install the driver; in a container: docker run --gpus all (NVIDIA Container Toolkit)"
        return Finding(verdict="warn", says=says, evidence=(str(no), f"on the bus: {', '.join(cards)}"), remedy=remedy)
    if no is not None:
        return Finding(verdict="info", says=none_here, evidence=(str(no),))
    with session(subject.host.nvml) as lib:
        n_counted = ask(lib, "nvmlDeviceGetCount")
    if n_counted is None:
        return unknown("NVML does not count the GPUs")
    here = subject.machine.gpus
    told = each(here, _told)
    if n_counted > len(here):
        return _missing(subject, n_counted, told)
    if not here:
        return Finding(verdict="info", says=none_here)
    if not judged(subject):
        says = f"the training runs on the CPU, and {named(here)} could be used"
        return Finding(verdict="info", says=says, evidence=told)
    return ok(f"NVIDIA's driver has {named(here)}", *told)


def _missing(subject: Subject, n_counted: int, told: tuple[str, ...]) -> Finding:
    """Some are not in the list: they fell off the bus, or have no memory of their own to tell of."""
    with session(subject.host.nvml) as lib:
        handles = [ask(lib, "nvmlDeviceGetHandleByIndex", i) for i in range(n_counted)]
        n_lost = sum(ask(lib, "nvmlDeviceGetUUID", handle) is None for handle in handles)
    if not n_lost:
        says = f"{n_counted - len(subject.machine.gpus)} of {n_counted} GPUs do not tell their memory, and are not used"
        return Finding(verdict="warn", says=says, evidence=told)
    remedy = "look for Xid in dmesg (79: fallen off the bus); a reboot brings it back, or does not"
    return Finding(verdict="warn", says=f"{n_lost} of {n_counted} GPUs do not answer", evidence=told, remedy=remedy)


def _told(gpu: Gpu) -> str:
    return f"{gpu.name}, {gpu.mem_bytes / 2**30:.0f} GiB"


def cards_on_the_bus(subject: Subject) -> tuple[str, ...]:
    """GPUs of NVIDIA on the PCI bus, whether a driver has them or not."""
    folder, read = "sys/bus/pci/devices", subject.host.read
    return tuple(
        name
        for name in subject.host.names(folder) or ()
        if read(f"{folder}/{name}/vendor") == NVIDIA and (read(f"{folder}/{name}/class") or "").startswith(DISPLAY)
    )


def driver(subject: Subject) -> Finding | None:
    """1: whether the driver is new enough for the CUDA that torch was built with.

    A driver is, from a branch on, good for every minor version of a CUDA; a CUDA that it knows already, itself or by a
    forward-compatibility package, is as good.
    """
    if not judged(subject):
        return None
    have, wanted = subject.machine.driver, subject.machine.versions.get("cuda")
    torch = subject.machine.versions.get("torch")
    if wanted is None:
        says = f"torch {torch} is built without CUDA, or does not say which: it may not see the GPU"
        return Finding(verdict="warn", says=says, remedy="pip install torch, from an index with CUDA builds")
    with session(subject.host.nvml) as lib:
        knows = ask(lib, "nvmlSystemGetCudaDriverVersion_v2")
    branch = re.match(r"\d+", have or "")
    if branch is None:
        return unknown("the driver does not tell its version")
    major = _numbers(wanted)[0]
    least = LEAST_DRIVER.get(major)
    told = "" if knows is None else f", which knows CUDA {knows // 1000}.{knows % 1000 // 10}"
    says = f"driver {have}{told}; torch {torch} is built for CUDA {wanted}"
    if (knows is not None and knows // 1000 >= major) or (least is not None and int(branch[0]) >= least):
        newer = knows is not None and _numbers(wanted) > (knows // 1000, knows % 1000 // 10)
        return ok(says, *([MINOR] if newer else []))
    if least is None:
        return unknown(f"{says}: which driver that needs is not known here")
    older = f", or install {OLDER_BUILD}" if int(branch[0]) >= LEAST_DRIVER[12] else ""
    return Finding(verdict="fail", says=f"{says}, which needs {least} or newer", remedy=f"update the driver{older}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def architecture(subject: Subject) -> Finding | None:
    """3: whether torch's wheel holds code for the GPU: of its own generation, for its capability or a lower one."""
    gpus = judged(subject)
    cuda = subject.machine.versions.get("cuda")
    if not gpus or cuda is None:
        return None  # `driver` says so
    codes = BUILT_FOR.get(cuda, {}).get("aarch64" if platform.machine() == "aarch64" else "x86_64")
    if dumb := [g for g in gpus if g.capability is None]:
        return mute(dumb, "the compute capability")
    if codes is None:
        return unknown(f"which GPUs torch's wheel for CUDA {cuda} holds code for is not known here")
    without = [g for g in gpus if not runs_on(g, codes)]
    built = f"torch for CUDA {cuda} is built for " + ", ".join(f"{c // 10}.{c % 10}" for c in sorted(codes))
    if not without:
        return ok("torch holds code for " + named(gpus), *each(gpus, _capable), built)
    says = (
        f"torch holds no code for {named(without)} (capability {_capability(without[0])}): no kernel image is available"
    )
    fits = [c for c, by in BUILT_FOR.items() if all(runs_on(g, by["x86_64"]) for g in gpus)]
    build = f"install torch's build for CUDA {fits[-1]} {WHERE}" if fits else ""
    remedy = build or "no wheel of torch 2.15 has it: use an older torch"
    return Finding(verdict="fail", says=says, evidence=(*each(gpus, _capable), built), remedy=remedy)


def runs_on(gpu: Gpu, codes: frozenset[int]) -> bool:
    """Code runs on its own major version from its minor on (torch.cuda.DEVICE_REQUIREMENT; wheels hold no PTX)."""
    assert gpu.capability is not None
    major, minor = gpu.capability[:2]
    return any(code // 10 == major and code % 10 <= minor for code in codes)


def _capability(gpu: Gpu) -> str:
    return ".".join(map(str, gpu.capability or ()))


def _capable(gpu: Gpu) -> str:
    return f"{gpu.name}, compute capability {_capability(gpu)}"


def libraries(subject: Subject) -> Finding | None:
    """4: whether another NCCL or cuDNN takes the place of torch's.

    Torch's own wheel names the folders of its libraries (RPATH), and those go before LD_LIBRARY_PATH, but not before
    LD_PRELOAD; a torch that was built otherwise may take the first in LD_LIBRARY_PATH.
    """
    if not judged(subject):
        return None
    host, versions = subject.host, subject.machine.versions
    preloaded = [p for p in re.split(r"[\s:]+", host.env.get("LD_PRELOAD", "")) if SHADOWS.search(p)]
    twice = []
    for name in ("nccl", "cudnn"):
        found = {f"nvidia-{name}-cu{n}": host.version(f"nvidia-{name}-cu{n}") for n in (11, 12, 13, 14)}
        have = [f"{distribution} {version}" for distribution, version in found.items() if version]
        twice += [" and ".join(have)] if len(have) > 1 else []
    evidence = [
        f"{n} {versions[k]} comes with torch" for k, n in (("cudnn", "cuDNN"), ("nccl", "NCCL")) if k in versions
    ]
    if preloaded:
        says = f"LD_PRELOAD puts {', '.join(preloaded)} before torch's own"
        return Finding(verdict="warn", says=says, evidence=tuple(evidence), remedy="unset LD_PRELOAD")
    if twice:
        says = f"{'; '.join(twice)} are installed into one folder: the last one wins"
        remedy = "uninstall those of the CUDA that torch is not built for, then reinstall torch's"
        return Finding(verdict="warn", says=says, evidence=tuple(evidence), remedy=remedy)
    folders = [f for f in host.env.get("LD_LIBRARY_PATH", "").split(":") if f]
    beside = [f"{f}/{n}" for f in folders for n in host.names(f.lstrip("/")) or () if SHADOWS.match(n)]
    if beside:
        says = "LD_LIBRARY_PATH holds another NCCL or cuDNN; torch's wheel takes its own, another build may not"
        return Finding(verdict="info", says=says, evidence=(*evidence, *beside))
    return ok("nothing takes the place of torch's NCCL and cuDNN", *evidence)


def precision(subject: Subject) -> Finding | None:
    """5: which 16-bit types the GPU computes fast, and whether AMP can be trusted on it."""
    gpus = judged(subject)
    if not gpus:
        return None
    if dumb := [g for g in gpus if g.capability is None]:
        return mute(dumb, "the compute capability")
    told = each(gpus, _capable)
    off = [g for g in gpus if AMP_IS_OFF.search(g.name)]
    if off:
        says = f"Ultralytics trains on {named(off)} ({off[0].name}) without AMP: its losses become NaN there"
        if subject.plan.half:
            return Finding(verdict="warn", says=says, evidence=told, remedy="amp=False says so, and saves the check")
        return Finding(verdict="info", says=says, evidence=told)
    least = min(g.capability for g in gpus if g.capability is not None)
    if least >= (8, 0):
        return ok("fp16 and bf16 both run on tensor cores", *told)
    if least >= (7, 0):
        return Finding(verdict="info", says="fp16 runs on tensor cores, bf16 does not: it is emulated", evidence=told)
    says = "no tensor cores: AMP saves memory and hardly any time"
    return Finding(verdict="info", says=says, evidence=told)


DRIVER: Final[dict[str, Callable[[Subject], Finding | None]]] = {
    "gpu": gpu,  # 2
    "driver": driver,  # 1
    "gpu architecture": architecture,  # 3
    "nccl and cudnn": libraries,  # 4
    "precision": precision,  # 5
}
"""What must be right before a kernel runs at all."""
