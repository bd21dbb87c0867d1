"""Which settings has YOLO no argument for? Each has a context manager of the same name in worker/patches."""

from __future__ import annotations

from autotune.contract import Site, Training
from autotune.space import here, legal
from autotune.space.context import STOCK_PREFETCH
from autotune.space.knob import Knob

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
}
