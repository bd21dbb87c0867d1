"""What of this job, or around it, may cost speed, and how would the job run without it? For `doctor --measure`.

Each suspect is a change of one thing; prices.py runs the job with and without it. Nothing here measures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from autotune.contract import Params
from autotune.machine.environment import speed_environment
from autotune.question import Question
from autotune.report import words
from autotune.space.context import cache_fault, workers_cap
from autotune.space.knobs import KNOBS

NEAR_FRAC: Final = 0.03
"""A loader that delivers more by less than this is not worth the runs that would prove it."""
NEEDED: Final = frozenset(
    {
        *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_HOME", "CUDA_PATH", "LD_LIBRARY_PATH"),
        *("NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "YOLO_AUTOINSTALL", "YOLO_OFFLINE"),
        *("NCCL_SOCKET_IFNAME", "NCCL_IB_HCA", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "NCCL_VERSION"),
        *("CUDA_VERSION", "NVIDIA_REQUIRE_CUDA"),
    }
)
"""Without these the job may not run, or the time is the same: they say where things are."""
SHOWN: Final = 3
"""Variables that are named; of more, their number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """One thing that may cost speed, and the other way to run the job."""

    name: str
    """As it is now: `workers=1`."""
    other: str
    """What else is run, in words: `workers=2`."""
    args: dict[str, Any] = field(default_factory=dict)
    """YOLO arguments of the other run."""
    env: dict[str, str] = field(default_factory=dict)
    """Of the other run; an empty value unsets."""
    patches: Params = field(default_factory=dict)
    cold: bool = False
    """The other run is the worse one: its images come from the disk."""
    note: str = ""
    """What the price leaves out, or where it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpriced:
    """What was not priced, and why."""

    name: str
    why: str


def worker_counts(question: Question) -> list[int]:
    """Numbers of loader workers a rank that are worth a look: 1, half the cores, the cores, twice the cores.

    As far as Ultralytics grants them (data/build.py).
    """
    ctx = question.ctx
    cores, cap = max(1, ctx.machine.n_cores // ctx.n_ranks), max(1, workers_cap(ctx))
    return sorted({min(n, cap) for n in (1, cores // 2, cores, 2 * cores) if n})


def of_workers(now: int, loader: Mapping[int, float], step: float | None, on_cpu: bool) -> Suspect | Unpriced:
    """The number of workers, judged by what the loader alone delivers.

    Args:
        now: workers in effect.
        loader: workers -> images/s of the loader alone; `now` is one of them.
        step: images/s of the step alone. On a GPU a loader that is faster than this gives nothing more; on a CPU the
            two share the cores, and only the whole job can tell.
        on_cpu: it trains there.
    """
    most = math.inf if on_cpu or step is None else step
    said = ", ".join(f"{n}: {words.number(x)}" for n, x in sorted(loader.items()))
    others = {n: min(x, most) for n, x in loader.items() if n != now}
    if now not in loader or not others:
        return Unpriced(name=f"workers={now}", why=f"no other number was measured (loader alone, img/s: {said})")
    best = min((n for n in others if others[n] >= (1 - NEAR_FRAC) * max(others.values())), default=now)
    if others[best] <= (1 + NEAR_FRAC) * min(loader[now], most):
        return Unpriced(name=f"workers={now}", why=f"no other number delivers more (loader alone, img/s: {said})")
    return with_workers(best, f"workers={now}", on_cpu)


def with_workers(n: int, name: str, on_cpu: bool) -> Suspect:
    """The run with so many; on a CPU Ultralytics takes none, whatever it is told (engine/trainer.py)."""
    note = "plain YOLO takes none on a CPU, `autotune train` can" if on_cpu else ""
    patches: Params = {"workers": n} if on_cpu else {}
    return Suspect(name=name, other=f"workers={n}", args={"workers": n}, patches=patches, note=note)


def of_environment(question: Question) -> Suspect | None:
    """The variables that the job inherits (check 31), against a clean shell; None: there are none."""
    # Ultralytics sets OMP_NUM_THREADS=1 in a shell that has none.
    usual = {"OMP_NUM_THREADS": "1"}
    env = question.ctx.env
    found = {k: usual.get(k, "") for k in speed_environment(env) if k not in NEEDED and env.get(k) != usual.get(k)}
    if not found:
        return None
    named = " ".join(f"{k}={env[k]}" for k in list(found)[:SHOWN])
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return Suspect(name=f"{named}{more}", other="a clean environment", env=found)


def of_threads(question: Question) -> Suspect | None:
    """Threads of the main process, on a CPU: Ultralytics takes one less than the host has (utils/__init__.py)."""
    ctx = question.ctx
    if ctx.device != "cpu":
        return None
    now, cores = KNOBS["torch_threads"].baseline(ctx), max(1, ctx.machine.n_cores // ctx.n_ranks)
    if now == cores:
        return None
    other = f"torch_threads={cores}"
    return Suspect(name=f"torch_threads={now}", other=other, patches={"torch_threads": cores})


def of_cache(question: Question) -> Suspect | Unpriced | None:
    """Images that are decoded again in every epoch, against a cache that fits; None: there is one already."""
    args = question.ctx.train_args
    if args.get("cache") not in (None, False, "False"):
        return None
    faults = {}
    for mode in ("ram", "disk"):
        if (fault := cache_fault(mode, question.ctx)) is None:
            note = "filling it, once, is left out"
            return Suspect(name="cache=False", other=f"cache={mode}", args={"cache": mode}, note=note)
        faults[mode] = fault
    return Unpriced(name="cache=False", why="; ".join(f"cache={mode} {fault}" for mode, fault in faults.items()))


def of_cold_reads(question: Question, fits: bool, cold_images_per_s: float | None, n_read: float) -> Suspect | Unpriced:
    """The first epoch, whose images come from the disk.

    Args:
        question: the job.
        fits: the dataset fits into free memory.
        cold_images_per_s: what the disk delivers where it does not.
        n_read: images that a run reads before and while it is measured.
    """
    name = "images on a cold disk"
    if not fits:
        rate = "" if cold_images_per_s is None else f"; it delivers {words.rate(cold_images_per_s)}"
        return Unpriced(name=name, why=f"the dataset does not fit into memory, every run reads the disk{rate}")
    if (question.ctx.n_images or 0) < n_read:
        return Unpriced(name=name, why=f"the dataset is so small that a run has read all of it ({n_read:.0f} images)")
    return Suspect(name=name, other="the same from memory", cold=True, note="in the first epoch only")
