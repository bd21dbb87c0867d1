"""What do we run on, and which GPU did the user ask for?"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from autotune import __version__
from autotune.contract import Gpu, Machine
from autotune.errors import InputError
from autotune.machine.gpus import read_gpus, read_links
from autotune.machine.host import Host
from autotune.machine.limits import cgroup_cores, cgroup_memory_bytes
from autotune.machine.nvml import read_driver

DISTRIBUTIONS = ("torch", "torchvision", "ultralytics", "optuna", "numpy", "opencv-python", "pandas", "plotly")


def read_machine(root: Path = Path("/")) -> Machine:
    """Facts of this machine as this process may use it; never raises.

    Args:
        root: of the file system, for tests.
    """
    quota = cgroup_cores(root)
    n_cores = len(os.sched_getaffinity(0))
    n_cores = max(1, min(n_cores, int(quota))) if quota is not None else n_cores
    ram_bytes = min(psutil.virtual_memory().total, cgroup_memory_bytes(root) or 2**62)
    host = Host(root=root)
    gpus, driver, cpu, versions = read_gpus(host), read_driver(), _cpu_name(root), _versions()
    return Machine(
        hostname=socket.gethostname(),
        cpu=cpu,
        n_cores=n_cores,
        n_cores_host=os.cpu_count() or n_cores,
        ram_bytes=ram_bytes,
        shm_bytes=_shm_bytes(root),
        gpus=gpus,
        gpu_links=read_links(gpus, host),
        driver=driver,
        versions=versions,
        fingerprint=fingerprint(gpus, cpu, n_cores, ram_bytes, driver, versions),
    )


def fingerprint(
    gpus: tuple[Gpu, ...], cpu: str, n_cores: int, ram_bytes: int, driver: str | None, versions: Mapping[str, str]
) -> str:
    """Eight hex digits that agree where two throughputs may be compared; host name and GPU serials do not matter."""
    facts = list(_facts(gpus, cpu, n_cores, ram_bytes, driver, versions).values())
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]


def differences(then: Machine, now: Machine) -> str:
    """What makes two fingerprints differ: `torch 2.14.0 then, 2.15.0 now; ...`; empty when nothing does."""
    a, b = (_facts(m.gpus, m.cpu, m.n_cores, m.ram_bytes, m.driver, m.versions) for m in (then, now))
    return "; ".join(f"{name} {a[name]} then, {b[name]} now" for name in a if a[name] != b[name])


def changes(then: Machine, now: Machine) -> tuple[str, ...]:
    """Everything that may matter and is another, in words: `torch 2.14.0, now 2.15.0`; the fingerprint's facts first.

    Args:
        then: an earlier record.
        now: from read_machine.
    """
    a, b = (_facts(m.gpus, m.cpu, m.n_cores, m.ram_bytes, m.driver, m.versions) for m in (then, now))
    said = []
    if a.pop("GPUs") != b.pop("GPUs"):
        shown = _memories if describe(then) == describe(now) else describe
        said.append(f"GPUs: {shown(then)}, now {shown(now)}")
    said += [f"{_WORDS.get(name, name)} {_said(a[name])}, now {_said(b[name])}" for name in a if a[name] != b[name]]
    others = sorted((then.versions.keys() | now.versions.keys()) - a.keys())
    was, are = then.versions, now.versions
    said += [f"{n} {_said(was.get(n))}, now {_said(are.get(n))}" for n in others if was.get(n) != are.get(n)]
    if then.n_cores_host != now.n_cores_host:
        said.append(f"cores of the host {then.n_cores_host}, now {now.n_cores_host}")
    if then.hostname != now.hostname:
        said.append(f"host name {then.hostname}, now {now.hostname}")
    return tuple(said)


_WORDS = {"cores": "usable cores", "driver": "NVIDIA driver"}


def _said(value: Any) -> str:
    return "none" if value is None else str(value)


def _memories(machine: Machine) -> str:
    """GPUs that only their memory tells apart."""
    return " + ".join(f"{_gpu_name(g.name)} with {g.mem_bytes / 2**30:.0f} GiB" for g in machine.gpus)


def _facts(
    gpus: tuple[Gpu, ...], cpu: str, n_cores: int, ram_bytes: int, driver: str | None, versions: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "GPUs": [[g.name, g.mem_bytes] for g in gpus],
        "CPU": cpu,
        "cores": n_cores,
        "GiB of memory": round(ram_bytes / 2**30),
        "driver": driver,
        "torch": versions.get("torch"),
        "ultralytics": versions.get("ultralytics"),
    }


def describe(machine: Machine, gpus: Sequence[str] | None = None) -> str:
    """Short, for headlines: `4 x H100 80GB` or `CPU, 2 cores`.

    Args:
        machine: from read_machine.
        gpus: UUIDs of those that matter; () is the CPU. None: what there is.
    """
    chosen = [g for g in machine.gpus if gpus is None or g.uuid in gpus]
    if not chosen:
        return f"CPU, {machine.n_cores} core{'s' * (machine.n_cores != 1)}"
    kinds = Counter(_gpu_name(g.name) for g in chosen)
    return " + ".join(f"{n} x {name}" if len(chosen) > 1 else name for name, n in kinds.items())


def resolve_gpus(
    flag: str | None, device: Any, machine: Machine, env: Mapping[str, str] = os.environ
) -> tuple[str, tuple[str, ...]]:
    """Which GPUs to train on, a rank on each.

    Args:
        flag: --gpus: how many (`1`), which (`0,2`) or `all`.
        device: YOLO's device=.
        machine: from read_machine.
        env: CUDA_VISIBLE_DEVICES in it narrows what is there; indices count what is visible, as in torch.

    Returns:
        The device as YOLO writes it (`cpu`, `0` or `0,2`), and the UUIDs to make visible to a trial, in which those
        GPUs are then devices 0 to n-1. With neither flag nor device: the first visible GPU, as in YOLO, else the CPU.

    Raises:
        InputError: it cannot be had; never falls back in silence.
    """
    if flag is not None and device not in (None, ""):
        raise InputError(f"--gpus {flag} and device={device} are both given", "leave one of the two")
    there = visible(machine, env)
    if flag is not None:
        wanted = _by_flag(flag.strip(), there)
    elif device in (None, ""):
        wanted = [0] if there else []
    else:
        wanted = _by_device(device)
    asked = f"--gpus {flag}" if flag is not None else f"device={device}"
    missing = [i for i in wanted if i >= len(there)]
    if missing:
        have = f"{len(there)} visible GPU{'s' * (len(there) != 1)}" if there else "no GPU"
        hidden = " (CUDA_VISIBLE_DEVICES hides some)" if len(there) < len(machine.gpus) else ""
        verb = "are" if len(there) > 1 else "is"
        raise InputError(f"{asked}: there {verb} {have} here{hidden}", "device=cpu trains on the CPU")
    if len(set(wanted)) < len(wanted):
        raise InputError(f"{asked} names a GPU twice", "name each once")
    if not wanted:
        return "cpu", ()
    return ",".join(map(str, wanted)), tuple(there[i].uuid for i in wanted)


def visible(machine: Machine, env: Mapping[str, str]) -> list[Gpu]:
    """The GPUs CUDA would show: in the order of CUDA_VISIBLE_DEVICES, up to its first entry that names none."""
    listed = env.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return list(machine.gpus)
    found: list[Gpu] = []
    for entry in (e.strip() for e in listed.split(",")):
        matches = [
            g for g in machine.gpus if entry == str(g.index) or (entry.startswith("GPU-") and g.uuid.startswith(entry))
        ]
        if len(matches) != 1 or matches[0] in found:
            break
        found += matches
    return found


def _by_flag(flag: str, there: list[Gpu]) -> list[int]:
    if flag == "all":
        if not there:
            raise InputError("--gpus all: there is no GPU here", "device=cpu trains on the CPU")
        return list(range(len(there)))
    if not re.fullmatch(r"\d+(,\d+)*", flag):
        raise InputError(f"--gpus {flag} is neither a number, nor a list such as 0,2, nor all")
    if "," in flag:
        return [int(i) for i in flag.split(",")]
    if int(flag) == 0:
        raise InputError("--gpus 0 would be no GPU", "device=cpu trains on the CPU, device=0 on the first GPU")
    return list(range(min(int(flag), len(there) + 1)))  # one too many is enough to be refused


def _by_device(device: Any) -> list[int]:
    """YOLO's device= as indices; [] is the CPU. `-1` is an idle GPU to Ultralytics; we take the first."""
    text = re.sub(r"cuda:|[()\[\]'\s]", "", str(device).lower())
    if text == "cpu":
        return []
    if text in ("cuda", "-1"):
        return [0]
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise InputError(f"device={device} is not supported", "device=cpu, or indices of GPUs such as device=0,1")
    return [int(i) for i in text.split(",")]


def _gpu_name(name: str) -> str:
    """`NVIDIA H100 80GB HBM3` -> `H100 80GB`."""
    name = re.sub(r"^NVIDIA |GeForce |Tesla ", "", name)
    return re.sub(r"(\d+GB).*", r"\1", name)


def _cpu_name(root: Path) -> str:
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()  # ARM names no model


def _shm_bytes(root: Path) -> int | None:
    try:
        stat = os.statvfs(root / "dev/shm")
    except OSError:
        return None
    return stat.f_frsize * stat.f_blocks


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "autotune": __version__}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
