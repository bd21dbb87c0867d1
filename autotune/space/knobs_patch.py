"""Which settings has YOLO no argument for? Each has a context manager of the same name in worker/patches.

Those of several ranks stand in knobs_ddp.py.
"""

from __future__ import annotations

from autotune.contract import Site, Training
from autotune.space import here, legal
from autotune.space.context import STOCK_PREFETCH
from autotune.space.knob import Condition, Knob
from autotune.space.knobs_ddp import DDP_KNOBS

PATCH_KNOBS: dict[str, Knob] = {
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
        condition=Condition(
            knobs=("workers",),
            acts=lambda now, _: bool(now("workers")),
            stock=STOCK_PREFETCH,
            otherwise="there are no loader workers here",
        ),
    ),
    "pin_memory": Knob(
        name="pin_memory",
        site=Site.PATCH,
        training=Training.NEUTRAL,
        doc="Copy batches to page-locked memory, from which they reach the GPU faster; it costs a thread and a copy.",
        needs="A CUDA GPU.",
        legal=legal.one_of(True, False),
        baseline=lambda ctx: ctx.device == "cuda",
        blocked=here.cuda_only("there is no GPU to copy batches to"),
    ),
    "val_workers": Knob(
        name="val_workers",
        site=Site.PATCH,
        training=Training.NEUTRAL,
        doc="Loader workers of validation; null is Ultralytics' own, twice those of training.",
        needs="Validation, which no trial runs: for full training only.",
        legal=legal.or_null(legal.whole(0)),
        baseline=lambda _: None,
        blocked=lambda _: "a trial does not validate, so it cannot be measured",
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
        fits=lambda v, ctx: here.at_most(max(1, ctx.machine.n_cores // ctx.n_ranks), v, "usable cores of a rank here:"),
    ),
    "fp32_precision": Knob(
        name="fp32_precision",
        site=Site.PATCH,
        training=Training.NUMERICS,
        doc="What fp32 is computed in: tf32, or ieee for full fp32; null is torch's own, tf32 for convolutions only.",
        needs="amp=false without torch.compile, and a GPU of compute capability 8.0 or later.",
        legal=legal.one_of(None, "tf32", "ieee"),
        baseline=lambda _: None,
        blocked=here.precision_blocked,
        condition=Condition(
            # Inductor reads the legacy flags (kernel/conv.py, bmm.py), and reading them raises once this is set.
            knobs=("amp", "compile"),
            acts=lambda now, _: now("amp") is False and not now("compile"),
            stock=None,
            otherwise="amp computes in 16 bits, and torch.compile cannot be told",
        ),
    ),
    "activation_memory_budget": Knob(
        name="activation_memory_budget",
        site=Site.PATCH,
        training=Training.NUMERICS,
        doc="Share of the activations that torch.compile keeps for the backward pass; the rest is recomputed.",
        needs="torch.compile.",
        legal=legal.share,
        baseline=lambda _: 1.0,
        condition=Condition(
            knobs=("compile",),
            acts=lambda now, _: bool(now("compile")),
            stock=1.0,
            otherwise="there is no torch.compile here",
        ),
    ),
    "fused_sgd": Knob(
        name="fused_sgd",
        site=Site.PATCH,
        training=Training.NUMERICS,
        doc="SGD by one fused kernel; with fp16 it also spares the host a wait for the gradients' check.",
        needs="optimizer=SGD.",
        legal=legal.one_of(True, False),
        baseline=lambda ctx: None if here.sgd_only(ctx) else False,
        blocked=here.sgd_only,
    ),
    "log_every": Knob(
        name="log_every",
        site=Site.PATCH,
        training=Training.NEUTRAL,
        doc="Steps between readings of the loss for the progress line; each one waits for the device.",
        needs="",
        legal=legal.whole(1),
        baseline=lambda _: 1,
    ),
    "stride_on_cpu": Knob(
        name="stride_on_cpu",
        site=Site.PATCH,
        training=Training.NEUTRAL,
        doc="Keep the strides of the loss on the host, which otherwise waits for each of them in every step.",
        needs="A CUDA GPU, and a loss of a detection head.",
        legal=legal.one_of(True, False),
        baseline=lambda _: False,
        blocked=lambda ctx: (
            here.cuda_only("everything is on the host")(ctx)
            or ("classification has no strides" if ctx.task == "classify" else None)
        ),
    ),
    "gc_freeze": Knob(
        name="gc_freeze",
        site=Site.PATCH,
        training=Training.NEUTRAL,
        doc="Leave what exists when training begins out of Python's garbage collections.",
        needs="",
        legal=legal.one_of(True, False),
        baseline=lambda _: False,
    ),
    "empty_cache": Knob(
        name="empty_cache",
        site=Site.PATCH,
        training=Training.NEUTRAL,
        doc="At the end of an epoch give cached GPU memory back when more than half is taken; false keeps it.",
        needs="A CUDA GPU; false leaves less memory for validation, which no trial runs.",
        legal=legal.one_of(True, False),
        baseline=lambda _: True,
        blocked=here.cuda_only("there is no CUDA memory on CPU"),
    ),
    **DDP_KNOBS,
}
