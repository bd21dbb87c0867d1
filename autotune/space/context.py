"""Which job, on which machine, are the knobs asked about? And the caps Ultralytics derives from the two."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from autotune.contract import Machine, Value

C_COMPILERS = ("gcc", "cc", "clang")
"""torch.compile needs one at run time: inductor on CPU for its kernels, Triton on CUDA for its launcher."""
CUDAGRAPH_MODES = ("reduce-overhead", "max-autotune")
STOCK_PREFETCH = 4
"""Batches a worker prepares ahead in Ultralytics' training loader (data/build.py)."""


def has_c_compiler() -> bool:
    """Whether a C compiler is on PATH."""
    return any(shutil.which(name) for name in C_COMPILERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The job on this machine; an optional fact that is None is unknown, and nothing is ruled out by it."""

    machine: Machine
    task: str
    device: Literal["cpu", "cuda"]
    n_ranks: int = 1
    n_visible_gpus: int = 1
    """GPUs that the user's own training would see (CUDA_VISIBLE_DEVICES), whichever of them it uses."""
    train_args: dict[str, Any]
    """The user's job merged over YOLO's defaults (space/yolo_args.py)."""
    transports: frozenset[str] | None = None
    """Over what the ranks' traffic goes (run/transport.py), or goes as the user says; None: nobody knows yet."""
    nccl_files: Mapping[str, str] = field(default_factory=dict)
    """Variables that a configuration file of NCCL sets -> `value (file)`."""
    n_images: int | None = None
    """Training images."""
    image_hw: tuple[int, int] | None = None
    """Median height and width of the training images as stored."""
    free_ram_bytes: int | None = None
    """Memory available now; the machine's total where unknown."""
    free_disk_bytes: int | None = None
    """Free where the .npy files of cache=disk go."""
    env: Mapping[str, str] = field(default_factory=dict)
    """The user's environment, which every trial inherits."""
    has_compiler: bool = field(default_factory=has_c_compiler)
    effective: dict[str, Any] = field(default_factory=dict)
    """Knob -> what the baseline really ran with, once known; wins over predictions."""


def n_batches(batch_per_gpu: int, ctx: Context) -> int | None:
    """Batches an epoch has on one rank; None when the number of images is unknown."""
    if ctx.n_images is None:
        return None
    return math.ceil(math.ceil(ctx.n_images / ctx.n_ranks) / max(batch_per_gpu, 1))


def workers_cap(ctx: Context) -> int:
    """Most loader workers a rank gets: Ultralytics divides os.cpu_count() by the visible GPUs (data/build.py).

    Those of the user's shell, where the exported files will run, count: a trial sees only its own GPUs and would get
    more. On CPU our mixin calls the same loader, which divides by nothing.
    """
    return ctx.machine.n_cores_host // (max(ctx.n_ranks, ctx.n_visible_gpus, 1) if ctx.device == "cuda" else 1)


def cache_fault(mode: Value, ctx: Context) -> str | None:
    """Why images do not fit a cache (Ultralytics' own checks, data/base.py), or None.

    RAM: twice the resized images (long side imgsz) of all ranks must be available. Disk: 1.1 times the decoded images.
    """
    if ctx.n_images is None:
        return None
    if mode == "ram":
        imgsz = int(ctx.train_args.get("imgsz", 640))
        height, width = ctx.image_hw or (imgsz, imgsz)
        shrink = imgsz / max(height, width)
        need = 2 * ctx.n_ranks * ctx.n_images * round(height * shrink) * round(width * shrink) * 3
        have = ctx.machine.ram_bytes if ctx.free_ram_bytes is None else min(ctx.free_ram_bytes, ctx.machine.ram_bytes)
        if need > have:
            return f"needs {need / 2**30:.1f} GiB of memory, {have / 2**30:.1f} GiB there"
    if mode == "disk" and ctx.image_hw and ctx.free_disk_bytes is not None:
        need = round(1.1 * ctx.n_images * ctx.image_hw[0] * ctx.image_hw[1] * 3)
        if need > ctx.free_disk_bytes:
            return f"needs {need / 2**30:.1f} GiB of disk, {ctx.free_disk_bytes / 2**30:.1f} GiB free"
    return None
