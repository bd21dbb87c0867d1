"""Is what a training runs in complete, and free of what earlier work left behind? (KNOBS 4: 29, 31, 34, 35)"""

from __future__ import annotations

import json
import re
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Final

from packaging.version import InvalidVersion, Version

from autotune.machine.checks.finding import Finding, Subject, ok, unknown
from autotune.machine.environment import speed_environment
from autotune.machine.nccl import nccl_files

MANY_ZOMBIES: Final = 100
SLOWING: Final = {
    "CUDA_LAUNCH_BLOCKING": (r"[^0]+", "every kernel is waited for"),
    "NCCL_DEBUG": (r"(?i)trace", "every call of NCCL is logged"),
    "NCCL_P2P_DISABLE": (r"[^0]+", "GPUs do not read each other's memory"),
    "NCCL_SHM_DISABLE": (r"[^0]+", "ranks do not use shared memory"),
    "TORCH_DISTRIBUTED_DEBUG": (r"(?i)detail", "every collective is checked on all ranks"),
    "TORCHDYNAMO_DISABLE": (r"[^0]+", "torch.compile does nothing"),
    "TORCH_COMPILE_DEBUG": (r"[^0]+", "torch.compile writes out what it does"),
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": (r"[^0]+", "every trial compiles anew"),
    "PYTORCH_NO_CUDA_MEMORY_CACHING": (r"[^0]+", "every tensor is allocated by the driver"),
    "CUDNN_LOGLEVEL_DBG": (r"[1-9]\d*", "cuDNN logs its calls"),
    "CUDNN_LOGINFO_DBG": (r"[^0]+", "cuDNN logs its calls"),
    "NVIDIA_TF32_OVERRIDE": (r"0", "no TF32 anywhere"),
    "PYTHONMALLOC": (r".*debug", "Python checks every allocation"),
    "PYTHONDEVMODE": (r"[^0]+", "Python checks every allocation"),
}
"""Variable -> values that slow a training or override the search, and how."""
ALLOCATORS: Final = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""The first wins over the second, and neither warns (KNOBS 1.8)."""
FONT: Final = "Arial.ttf"
"""For the names of classes in plots; looked for whenever a dataset is checked."""
AMP_WEIGHTS: Final = "yolo26n.pt"
"""With which AMP is tried on a GPU before it is used."""
CLOUDPICKLE: Final = Version("3.1.1")
"""That Ultralytics asks for when it starts a training on several GPUs (utils/dist.py of 8.4.190)."""


def container(subject: Subject) -> Finding:
    """29: whether PID 1 of the container takes leave of the processes that ended."""
    name = subject.machine.container
    pids = [n for n in subject.host.names("proc") or () if n.isdecimal()]
    if not pids:
        return unknown("/proc cannot be read")
    zombies = sum(_is_zombie_of_init(subject.host.read(f"proc/{pid}/stat")) for pid in pids)
    init = subject.host.read("proc/1/comm") or "unknown"
    where = f"in a container ({name})" if name else "no container shows"
    evidence = (f"PID 1 is {init}; {zombies} ended process{'es' * (zombies != 1)} that it has not taken leave of",)
    if zombies:
        says = f"{where}, and PID 1 ({init}) does not reap: {zombies} ended process{'es' * (zombies != 1)} stay"
        return Finding(
            verdict="warn" if zombies >= MANY_ZOMBIES else "info",
            says=says,
            evidence=evidence,
            remedy="docker run --init (tini); Kubernetes: tini as the first command",
        )
    return ok(where, *evidence)


def _is_zombie_of_init(stat: str | None) -> bool:
    """`pid (comm) state ppid ...`; comm may hold anything."""
    fields = (stat or "").rpartition(")")[2].split()
    return fields[:2] == ["Z", "1"]


def environment(subject: Subject) -> Finding:
    """31: variables and files that earlier work left behind; every trial inherits them."""
    env = speed_environment(subject.host.env)
    system = subject.host.root / "etc/nccl.conf"
    files = nccl_files(subject.host.env, system)
    faults = [f"{k}={env[k]} ({why})" for k, (bad, why) in SLOWING.items() if k in env and re.fullmatch(bad, env[k])]
    faults += [
        f"{k}={files[k]}: {why}"
        for k, (bad, why) in SLOWING.items()
        if k in files and k not in env and re.fullmatch(bad, files[k].partition(" (")[0])
    ]
    if all(name in env for name in ALLOCATORS):
        faults.append(f"{ALLOCATORS[0]} and {ALLOCATORS[1]} are both set, and the first wins")
    evidence = (*(f"{k}={v}" for k, v in env.items()), *(f"{k}={v}" for k, v in files.items()))
    if faults:
        names = " ".join(sorted({re.split(r"[= ]", f)[0] for f in faults}))
        return Finding(
            verdict="warn",
            says=f"left over: {'; '.join(faults)}",
            evidence=evidence,
            remedy=f"unset {names} (or take it out of NCCL's file), unless you mean it",
        )
    if evidence:
        n = len(evidence)
        says = f"{n} variable{'s' * (n != 1)} that trials inherit: part of your baseline"
        return Finding(verdict="info", says=says, evidence=evidence)
    return ok("no variable that would slow a training or override the search")


def compiler(subject: Subject) -> Finding:
    """34: what torch.compile needs while it runs."""
    host, plan = subject.host, subject.plan
    commands = ("gcc", "cc", "clang") if plan.gpus else ("g++", "c++", "clang++")
    found = next(filter(None, map(host.which, commands)), None)
    header = f"{sysconfig.get_paths()['include']}/Python.h"
    missing = [] if found else [" or ".join(commands)]
    missing += [] if _is_there(subject, header) else ["Python.h"]
    missing += ["triton"] if plan.gpus and host.version("triton") is None else []
    evidence = (f"compiler {found or 'none'}, headers {header}, triton {host.version('triton') or 'none'}",)
    if missing:
        says = f"torch.compile would fail here: {', '.join(missing)} missing"
        remedy = "apt-get install g++ gcc python3-dev" + ("; pip install triton" if "triton" in missing else "")
        if plan.compiles:
            return Finding(verdict="warn", says=says, evidence=evidence, remedy=f"{remedy}; or leave compile out")
        return Finding(verdict="info", says=f"{says} (this job does not ask for it)", evidence=evidence, remedy=remedy)
    return ok("torch.compile finds what it needs", *evidence)


def packages(subject: Subject) -> Finding:
    """35: what a training would want to install or download in its first minute; autotune's own trials do neither."""
    host, plan = subject.host, subject.plan
    absent = [name for name in ("torch", "torchvision", "ultralytics") if host.version(name) is None]
    if absent:
        says = f"not installed: {', '.join(absent)}"
        return Finding(verdict="fail", says=says, remedy=f"pip install {' '.join(absent)}")
    pickle = host.version("cloudpickle")
    evidence = (f"cloudpickle {pickle or 'none'}",)
    if pickle is None or _older(pickle, CLOUDPICKLE):
        says = f"cloudpickle {pickle or 'is missing'}: plain `yolo train` on several GPUs will install {CLOUDPICKLE}"
        remedy = f"pip install 'cloudpickle>={CLOUDPICKLE}'"
        return Finding(verdict="warn" if len(plan.gpus) > 1 else "info", says=says, evidence=evidence, remedy=remedy)
    if wanted := _to_download(subject):
        says = f"plain `yolo train` downloads {' and '.join(wanted)} first; without internet it tries, and does without"
        remedy = "; ".join(f"put {name} into {folder}" for name, folder in wanted.items())
        return Finding(verdict="info", says=says, evidence=evidence, remedy=remedy)
    return ok("nothing has to be installed or downloaded for a training", *evidence)


def _to_download(subject: Subject) -> dict[str, str]:
    """File -> where Ultralytics looks for it, of those that are not there (check_font, check_amp of 8.4.190)."""
    host, plan = subject.host, subject.plan
    home = host.env.get("HOME") or "/"
    config = host.env.get("YOLO_CONFIG_DIR") or host.env.get("XDG_CONFIG_HOME") or f"{home}/.config"
    settings = f"{config}/Ultralytics"
    found = {}
    fonts = [settings, *(f"{folder}/fonts" for folder in ("/usr/share", "/usr/local/share", f"{home}/.local/share"))]
    if plan.task != "classify" and not any(_has(subject, folder, f"**/{FONT}") for folder in fonts):
        found[FONT] = settings
    if plan.half and plan.gpus:
        try:
            weights = str(json.loads(host.read(f"{settings}/settings.json".lstrip("/")) or "{}")["weights_dir"])
        except (ValueError, KeyError, TypeError):
            weights = "weights"  # where it is until Ultralytics was started once
        if not _has(subject, weights, AMP_WEIGHTS):
            found[AMP_WEIGHTS] = weights
    return found


def _has(subject: Subject, folder: str, pattern: str) -> bool:
    below = subject.host.root / str(Path(folder).absolute()).lstrip("/")
    return next(below.glob(pattern), None) is not None


def _older(version: str, least: Version) -> bool:
    try:
        return Version(version) < least
    except InvalidVersion:
        return False


def _is_there(subject: Subject, path: str) -> bool:
    return (subject.host.root / Path(path).relative_to("/")).is_file()


SOFTWARE: Final[dict[str, Callable[[Subject], Finding | None]]] = {
    "container": container,
    "environment": environment,
    "compiler": compiler,
    "packages": packages,
}
