"""What can be turned, what does it do to the training, and how is a configuration put into effect?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from autotune.contract import Params, Site, Training, Value
from autotune.space import here, legal
from autotune.space.context import CUDAGRAPH_MODES, STOCK_PREFETCH, Context, cache_fault, n_batches, workers_cap
from autotune.space.legal import same
from autotune.space.training import pins

__all__ = ["KNOBS", "Applied", "Context", "Knob", "baseline_params", "canonical", "materialise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """One row of KNOBS; labels, help and comments of exported files come from it."""

    name: str
    site: Site
    training: Training
    doc: str
    needs: str
    """What it takes to have an effect, one sentence; empty when nothing."""
    legal: legal.Legal
    """Value -> what a written value must be, None when it is legal."""
    baseline: Callable[[Context], Value]
    """What the user's own arguments give here."""
    blocked: Callable[[Context], str | None] = lambda _: None
    """Why the knob is inert or impossible here, None when it is not."""
    fits: Callable[[Value, Context], str | None] = lambda _v, _c: None
    """Why one legal value cannot be had here."""
    clamp: Callable[[Value, Context], Value] = lambda v, _: v
    """What a value becomes here, spelled one way."""


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
    "cudnn_benchmark": Knob(
        name="cudnn_benchmark",
        site=Site.PATCH,
        training=Training.NUMERICS,
        doc="Let cuDNN time its convolution algorithms at the first step and keep the fastest.",
        needs="A CUDA GPU and one image size.",
        legal=legal.one_of(True, False),
        baseline=lambda _: False,
        blocked=here.benchmark_blocked,
    ),
    "prefetch_factor": Knob(
        name="prefetch_factor",
        site=Site.PATCH,
        training=Training.NEUTRAL,
        doc="Batches a loader worker prepares ahead; more of them smooth out slow images and cost shared memory.",
        needs="Loader workers.",
        legal=legal.whole(1),
        baseline=lambda _: STOCK_PREFETCH,
    ),
    "torch_threads": Knob(
        name="torch_threads",
        site=Site.PATCH,
        training=Training.NUMERICS,
        doc="Threads of one torch operation in the main process.",
        needs="Training on CPU.",
        legal=legal.whole(1),
        baseline=lambda ctx: min(8, max(1, ctx.machine.n_cores_host - 1)) if ctx.device == "cpu" else 1,
        blocked=lambda ctx: "the GPU does the work; use omp_num_threads" if ctx.device == "cuda" else None,
        fits=lambda v, ctx: here.at_most(ctx.machine.n_cores, v, "usable cores here:"),
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
    ),
    "nccl_socket": Knob(
        name="nccl_socket",
        site=Site.ENV,
        training=Training.NEUTRAL,
        doc="NCCL_SOCKET_NTHREADS x NCCL_NSOCKS_PERTHREAD: helper threads and connections of NCCL over TCP.",
        needs="Several ranks whose traffic crosses TCP sockets (not NVLink, PCIe, shared memory or InfiniBand).",
        legal=legal.nccl_socket,
        baseline=here.socket_baseline,
        blocked=here.socket_blocked,
    ),
}


def baseline_params(names: Iterable[str], ctx: Context) -> Params:
    """What the user's own arguments really give here, for these knobs.

    Values that the baseline's own run reported (`ctx.effective`) win over what is predicted.
    """
    whole = {name: ctx.effective.get(name, knob.baseline(ctx)) for name, knob in KNOBS.items()}
    whole = canonical(whole, ctx)
    return {name: whole[name] for name in names}


def canonical(params: Params, ctx: Context) -> Params:
    """The same configuration spelled one way, so that two that run alike compare equal.

    Values are replaced by what they become here (workers above the cap, a cache that cannot fit), values inert in this
    combination by None (prefetch_factor without workers). Knobs that are not in `params` are as in the baseline.
    """
    out = {name: KNOBS[name].clamp(value, ctx) for name, value in params.items()}

    def now(name: str) -> Any:
        return out[name] if name in out else ctx.effective.get(name, KNOBS[name].baseline(ctx))

    batches = n_batches(int(now("batch_per_gpu")), ctx)
    if "workers" in out and batches is not None:
        out["workers"] = min(now("workers"), 0 if batches <= 1 else batches)
    if "prefetch_factor" in out:
        stock = STOCK_PREFETCH if out["prefetch_factor"] is None else out["prefetch_factor"]
        out["prefetch_factor"] = stock if now("workers") else None
    # reported to hang together (KNOBS 1.8), and the graphs' private pools gain nothing from growing segments
    if (
        "alloc_conf" in out
        and now("compile") in CUDAGRAPH_MODES
        and "expandable_segments:True" in str(out["alloc_conf"])
    ):
        out["alloc_conf"] = None
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """A configuration as the trial needs it."""

    train_args: dict[str, Any]
    env: dict[str, str] = field(default_factory=dict)
    patches: Params = field(default_factory=dict)


def materialise(params: Params, baseline: Params, ctx: Context, training: str) -> Applied:
    """Put into effect what differs from the baseline, and leave everything else as the user wrote it.

    Args:
        params: canonical values; a subset of the knobs is fine.
        baseline: what the user's own arguments give, at least for the knobs in `params`.
        ctx: the job on this machine.
        training: same, bounded or any; `any` leaves nbs and weight_decay alone where the batch cannot keep them.
    """
    args = dict(ctx.train_args)
    env: dict[str, str] = {}
    patches: Params = {}
    for name, value in params.items():
        if same(value, baseline[name]):
            continue
        if name == "batch_per_gpu":
            total = int(value or 0) * ctx.n_ranks
            args |= pins(ctx.train_args, total, training) | {"batch": total}
        elif name == "nccl_socket":
            threads, _, sockets = str(value or "x").partition("x")
            env |= {"NCCL_SOCKET_NTHREADS": threads, "NCCL_NSOCKS_PERTHREAD": sockets}
        elif KNOBS[name].site is Site.ENV:
            variable = {"omp_num_threads": "OMP_NUM_THREADS", "alloc_conf": "PYTORCH_CUDA_ALLOC_CONF"}[name]
            env[variable] = "" if value is None else str(value)  # empty unsets what the user's shell exports
        elif KNOBS[name].site is Site.PATCH or (ctx.device == "cpu" and name in ("workers", "channels_last")):
            stock = STOCK_PREFETCH if name == "prefetch_factor" and baseline[name] is None else None
            if value not in (None, stock):  # inert, or what the loader does by itself
                patches[name] = value
        else:
            args[name] = value
    return Applied(train_args=args, env=env, patches=patches)
