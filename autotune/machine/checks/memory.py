"""Is there memory enough: shared, free, and not already overdrawn? (KNOBS 4: 16, 20, 21)"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from autotune.machine.checks.finding import Finding, Plan, Subject, ok, unknown
from autotune.machine.limits import cgroup_memory_left_bytes, limits_show, meminfo, oom_kills
from autotune.machine.memory import spell_size as size
from autotune.machine.shared_memory import MARGIN, TRAIN_PREFETCH, image_bytes, train_bytes, val_bytes

RANK_BYTES: Final = 2 << 30
"""A rank's process and its loader workers: 0.6 GiB after importing torch and Ultralytics (measured on CPU), the rest
for CUDA's host side, and what each worker writes. An assumption."""
SWAPPED_BYTES: Final = 1 << 30
"""Less than this lies swapped out on any machine that has been up for long."""
IMPORT_BYTES: Final = 600 << 20
"""Resident after importing torch 2.15 and Ultralytics 8.4.190; measured here: 567 MiB."""


def workers_of(plan: Plan, n_cores_host: int) -> int:
    """Loader workers that a rank gets (data/build.py): os.cpu_count() divided by the GPUs, and its batches, are caps.

    A rank that has only one batch an epoch loads it itself, and so does every training on a CPU (engine/trainer.py).

    Args:
        plan: the job.
        n_cores_host: os.cpu_count().
    """
    return _capped(plan, n_cores_host // len(plan.gpus), 1) if plan.gpus else 0


def _capped(plan: Plan, cap: int, times: int) -> int:
    """`times` is 2 for validation, whose loader asks for twice as many."""
    if plan.n_images is not None and times == 1:
        n_batches = math.ceil(math.ceil(plan.n_images / plan.n_ranks) / plan.batch_per_gpu)
        cap = min(cap, n_batches if n_batches > 1 else 0)
    return min(times * plan.workers, cap)


def shared_memory(subject: Subject) -> Finding | None:
    """16: the batches that loader workers keep ready lie in /dev/shm; a full one kills them (bus error)."""
    plan, cores = subject.plan, subject.machine.n_cores_host
    # On a CPU plain YOLO has no loader workers, but autotune's own setting `workers` may try some.
    tried = "" if plan.gpus else ", if a trial takes loader workers (plain YOLO has none on a CPU)"
    workers, val_workers = (_capped(plan, cores // max(len(plan.gpus), 1), times) for times in (1, 2))
    if workers == 0:
        return None
    space = subject.host.space("/dev/shm")
    if space is None:
        return unknown("/dev/shm cannot be read", "is it mounted? Loader workers hand their batches over in it")
    image = image_bytes(plan.imgsz, 4 if plan.task == "classify" else 1)  # classify hands over 32 bit floats
    rank = train_bytes(workers=workers, batch_per_gpu=plan.batch_per_gpu, image_bytes=image)
    val = val_bytes(workers=val_workers, batch_per_gpu=plan.batch_per_gpu, image_bytes=image)
    need = round(MARGIN * plan.n_ranks * (rank + val))
    ranks = f"{plan.n_ranks} ranks x " if plan.n_ranks > 1 else ""
    evidence = (
        f"/dev/shm has {size(space.total_bytes)}, {size(space.free_bytes)} of it free",
        f"full queues need {size(need)}: {ranks}({workers} workers x {TRAIN_PREFETCH} batches of {plan.batch_per_gpu} "
        f"images at {plan.imgsz} pixels = {size(rank)}, and {size(val)} while it validates), and a fifth more",
    )
    gib = max(1, -(-need // 2**30))
    remedy = (
        f"docker run --shm-size={gib}g (or --ipc=host); Kubernetes: an emptyDir with medium: Memory on /dev/shm; "
        f"bare metal: mount -o remount,size={gib}g /dev/shm; or fewer workers"
    )
    if space.free_bytes < rank:
        says = f"{size(space.free_bytes)} free in /dev/shm, one rank's training queue alone needs {size(rank)}{tried}"
        return Finding(verdict="warn" if tried else "fail", says=says, evidence=evidence, remedy=remedy)
    if space.free_bytes < need:
        says = f"{size(space.free_bytes)} free in /dev/shm, full queues need {size(need)}{tried}"
        return Finding(verdict="warn", says=says, evidence=evidence, remedy=remedy)
    return ok(f"{size(space.free_bytes)} free in /dev/shm, full queues need {size(need)}", *evidence)


def memory(subject: Subject) -> Finding:
    """20: what is free for the ranks, a RAM cache and the page cache."""
    plan = subject.plan
    there = meminfo(subject.host).get("MemAvailable")
    if there is None:
        return unknown("/proc/meminfo does not say how much memory is available")
    left = cgroup_memory_left_bytes(subject.host.root)
    have = there if left is None else min(there, left)
    need = plan.n_ranks * RANK_BYTES
    ranks = f"{plan.n_ranks} rank{'s' * (plan.n_ranks > 1)}"
    evidence = [
        f"{size(there)} available on the host"
        + (f", {size(left)} left of the group's limit" if left is not None else ""),
        f"{ranks} with loader workers take about {size(need)}",
    ]
    free = f"{size(have)} of memory free"
    if have < plan.n_ranks * IMPORT_BYTES:
        says = f"{free}, and {ranks} need {size(plan.n_ranks * IMPORT_BYTES)} to import torch"
        return Finding(
            verdict="fail", says=says, evidence=tuple(evidence), remedy="end other programs, or raise the limit"
        )
    if have < need:
        return Finding(
            verdict="warn",
            says=f"{free}, {ranks} with loader workers may take {size(need)}",
            evidence=tuple(evidence),
            remedy="end other programs, raise the container's limit, or use fewer workers",
        )
    if plan.cache in (True, "ram") and plan.n_images:
        height, width = plan.image_hw or (plan.imgsz, plan.imgsz)
        shrink = plan.imgsz / max(height, width)
        cached = 2 * plan.n_ranks * plan.n_images * round(height * shrink) * round(width * shrink) * 3
        evidence.append(f"cache=ram wants {size(cached)}: twice the resized images, a copy a rank")
        if cached > have:
            return Finding(
                verdict="warn",
                says=f"{free}, cache=ram wants {size(cached)}, so Ultralytics will not cache",
                evidence=tuple(evidence),
                remedy="cache=disk, or cache=False: the page cache keeps the files that were read",
            )
    if left is None and not limits_show("memory", subject.host.root):
        return unknown(
            f"{size(there)} available on the host; whether a limit leaves less cannot be read (/sys/fs/cgroup)"
        )
    if plan.image_bytes is not None and plan.image_bytes > have:
        says = f"{free}, the dataset's files have {size(plan.image_bytes)}: every epoch reads from the disk again"
        return Finding(verdict="info", says=says, evidence=tuple(evidence))
    return ok(free, *evidence)


def overdrawn(subject: Subject) -> Finding:
    """21: pages that were swapped out, and processes that the kernel has killed for want of memory."""
    now, vmstat = meminfo(subject.host), subject.host.read("proc/vmstat")
    if not now or vmstat is None:
        return unknown("neither /proc/meminfo nor /proc/vmstat says")
    swapped = now.get("SwapTotal", 0) - now.get("SwapFree", 0)
    kills = oom_kills(subject.host.root)
    limit = subject.machine.cgroup_mem_bytes
    evidence = (
        f"{size(swapped)} of {size(now.get('SwapTotal', 0))} of swap in use",
        f"{kills} process{'es' * (kills != 1)} killed for want of memory so far",
        *([f"this container may use {size(limit)}"] if limit is not None else []),
    )
    if kills and limit is not None:
        says = f"the container's memory limit has ended {kills} process{'es' * (kills != 1)} so far"
        remedy = f"raise the limit ({size(limit)} now), or fewer workers, a smaller cache or batch"
        return Finding(verdict="warn", says=says, evidence=evidence, remedy=remedy)
    if swapped > max(SWAPPED_BYTES, now.get("SwapTotal", 0) // 2):
        says = f"{size(swapped)} are swapped out: memory was short, and what comes back stalls steps"
        return Finding(
            verdict="warn", says=says, evidence=evidence, remedy="end what fills the memory; swapoff -a && swapon -a"
        )
    if kills or swapped:
        said = [f"{kills} killed for want of memory since the machine started"] if kills else []
        said += [f"{size(swapped)} swapped out"] if swapped else []
        return Finding(verdict="info", says=", ".join(said), evidence=evidence)
    return ok("nothing swapped out, nothing killed for want of memory", *evidence)


MEMORY: Final[dict[str, Callable[[Subject], Finding | None]]] = {
    "shared memory": shared_memory,
    "memory": memory,
    "swap and OOM kills": overdrawn,
}
