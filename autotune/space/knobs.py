"""What can be turned, and what does it do to the training? One row a knob."""

from __future__ import annotations

from typing import Final

from autotune.contract import Site, Training
from autotune.space import here, legal
from autotune.space.context import cache_fault, workers_cap
from autotune.space.knob import Knob, variable
from autotune.space.knobs_ddp import DDP_KNOBS
from autotune.space.knobs_nccl import NCCL_KNOBS
from autotune.space.knobs_patch import PATCH_KNOBS

KNOBS: dict[str, Knob] = {
    "batch_per_gpu": Knob(
        name="batch_per_gpu",
        site=Site.YOLO_ARG,
        training=Training.SEMANTICS,
        doc="Images a GPU sees in one forward pass; YOLO's batch is this times the GPUs.",
        needs="With --training same: a divisor of the job's effective batch, so that a step sees the same images.",
        legal=legal.whole(1),
        baseline=lambda ctx: int(ctx.train_args["batch"]) // max(ctx.n_ranks, 1),
        fits=here.batch_fits,
    ),
    "amp": Knob(
        name="amp",
        site=Site.YOLO_ARG,
        training=Training.NUMERICS,
        doc="Mixed precision: true is fp16 with a loss scaler, bf16 needs none, false is fp32.",
        needs="A CUDA GPU; bf16 one of compute capability 8.0 or later.",
        legal=legal.one_of(True, False, "fp16", "bf16", "fp32"),
        baseline=here.amp_baseline,
        blocked=here.cuda_only("Ultralytics runs without mixed precision on CPU"),
        fits=here.amp_fits,
        clamp=here.amp_clamp,
    ),
    "compile": Knob(
        name="compile",
        site=Site.YOLO_ARG,
        training=Training.NUMERICS,
        doc="torch.compile mode of the model; it also drops the last incomplete batch of an epoch.",
        needs="A C compiler, and minutes for the first compilation.",
        legal=legal.one_of(False, True, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
        baseline=lambda ctx: here.compile_clamp(ctx.train_args.get("compile", False), ctx),
        blocked=here.compile_blocked,
        fits=here.compile_fits,
        clamp=here.compile_clamp,
    ),
    "channels_last": Knob(
        name="channels_last",
        site=Site.YOLO_ARG,
        training=Training.NUMERICS,
        doc="Keep images and weights as NHWC in memory; on by default on CUDA, set by autotune on CPU.",
        needs="",
        legal=legal.one_of(True, False),
        baseline=here.channels_last_baseline,
        blocked=lambda ctx: here.no_argument("channels_last", ctx) if ctx.device == "cuda" else None,
    ),
    "workers": Knob(
        name="workers",
        site=Site.YOLO_ARG,
        training=Training.NEUTRAL,
        doc="Processes that load and augment images for a rank; Ultralytics uses none on CPU, autotune can.",
        needs="No more than the host's cores divided by the visible GPUs.",
        legal=legal.whole(0),
        baseline=lambda ctx: 0 if ctx.device == "cpu" else here.workers_clamp(ctx.train_args["workers"], ctx),
        fits=lambda v, ctx: here.at_most(workers_cap(ctx), v, "Ultralytics caps workers here at"),
        clamp=here.workers_clamp,
    ),
    "cache": Knob(
        name="cache",
        site=Site.YOLO_ARG,
        training=Training.NUMERICS,
        doc="Keep decoded images in memory (ram; mosaic then draws from the whole set) or as .npy files (disk).",
        needs="Memory for twice the resized images of all ranks, or disk for all images as decoded.",
        legal=legal.one_of(False, True, "ram", "disk"),
        baseline=lambda ctx: here.cache_clamp(ctx.train_args.get("cache"), ctx),
        fits=cache_fault,
        clamp=here.cache_clamp,
    ),
    "deterministic": Knob(
        name="deterministic",
        site=Site.YOLO_ARG,
        training=Training.NUMERICS,
        doc="Ask torch for deterministic algorithms; false lets it take faster ones.",
        needs="",
        legal=legal.one_of(True, False),
        baseline=here.arg("deterministic"),
    ),
    "omp_num_threads": Knob(
        name="omp_num_threads",
        site=Site.ENV,
        training=Training.NUMERICS,
        doc="OMP_NUM_THREADS: threads of the CPU side of a GPU job's main process; Ultralytics sets 1.",
        needs="Training on a GPU.",
        legal=legal.whole(1),
        baseline=lambda ctx: int(ctx.env["OMP_NUM_THREADS"]) if ctx.env.get("OMP_NUM_THREADS", "").isdecimal() else 1,
        blocked=here.cuda_only("Ultralytics sets torch threads itself on CPU; use torch_threads"),
        fits=lambda v, ctx: here.at_most(ctx.machine.n_cores, v, "usable cores here:"),
        variables=variable("OMP_NUM_THREADS"),
    ),
    "alloc_conf": Knob(
        name="alloc_conf",
        site=Site.ENV,
        training=Training.NEUTRAL,
        doc="PYTORCH_CUDA_ALLOC_CONF: one option of the CUDA memory allocator, null for none.",
        needs="A CUDA GPU; expandable_segments not together with CUDA graphs.",
        legal=legal.alloc_conf,
        baseline=here.alloc_baseline,
        blocked=here.cuda_only("there is no CUDA memory on CPU"),
        clamp=lambda v, _: None if v == "expandable_segments:False" else v,  # that is the default
        # Its new name too, which would hold where the old one is unset.
        variables=lambda v: {"PYTORCH_CUDA_ALLOC_CONF": "" if v is None else str(v), "PYTORCH_ALLOC_CONF": ""},
    ),
    **PATCH_KNOBS,
    **NCCL_KNOBS,
}
COMMUNICATION: Final = frozenset({*DDP_KNOBS, *NCCL_KNOBS})
"""Knobs that act on what ranks exchange: none can gain more than the step that exchanges nothing shows."""
