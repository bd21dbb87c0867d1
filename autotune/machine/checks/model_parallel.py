"""Could sharding or a pipeline help this job? The check that weighs it."""

from __future__ import annotations

from typing import Final

from autotune.machine.checks.finding import Finding, Subject, Weighed
from autotune.machine.memory import spell_size as size

ALLOWANCE_BYTES: Final = 700 << 20
"""Kept free: a CUDA context takes 300 to 700 MiB (KNOBS 7), and the libraries of a CPU process about as much."""
MICRO_BATCHES: Final = 8
"""Of a pipeline whose idle time is told as an example; more of them idle less and hold no less memory (GPipe)."""
BUDGET: Final = "try the knob activation_memory_budget (0.5 to 0.9) with compile: it recomputes what is cheap"


def model_parallel(subject: Subject) -> Finding:
    """Could sharding (FSDP, ZeRO) or pipeline parallelism help this job? From measured sizes (KNOBS 3).

    With m bytes of memory, s of state and a of activations an image, b = (m - s) / a images fit a step. Sharding over n
    ranks frees s (n - 1) / n of each, and DDP's copy of the gradients: room for that much / a images. A pipeline of p
    stages idles (p - 1) / (m + p - 1) of the time with m micro-batches (Huang et al. 2019, GPipe, 2.2), and a stage
    holds about (s + a) / p for one image when it is cut evenly.
    """
    job = subject.weighed
    assert job is not None, "a row of WEIGHED"
    n, alone = max(job.n_ranks, 2), " (the job has one: nothing to spread over)" if job.n_ranks == 1 else ""
    state, image = job.sizes.state_bytes, job.sizes.activations_bytes / (2 if job.half else 1)
    buckets = job.sizes.gradients_bytes if job.n_ranks > 1 else 0  # DDP's copy of the gradients
    room = job.mem_bytes - ALLOWANCE_BYTES
    freed = state * (n - 1) / n + buckets
    fits, fits_sharded = (max(0, int((room - s) // image)) for s in (state + buckets, state + buckets - freed))
    evidence = (
        _measured(job, state, image),
        f"beside the state {_images(fits)} fit into {size(job.mem_bytes)} ({job.mem_of}; {size(ALLOWANCE_BYTES)} kept "
        f"free), and the job asks for {job.batch_per_gpu} a rank",
        f"sharding over {n} ranks{alone} would free {size(freed)} on each: room for {_few(freed / image)} images more",
        f"a pipeline of {n} stages idles {(n - 1) / (MICRO_BATCHES + n - 1):.0%} of the time with {MICRO_BATCHES} "
        "micro-batches, before any transfer",
    )
    if fits >= job.batch_per_gpu:
        says = (
            "not useful: the job fits on every rank as it is, and plain data parallel neither gathers weights nor idles"
        )
        return Finding(verdict="ok", says=says, evidence=evidence, remedy=f"for more than {fits} a rank: {BUDGET}")
    if fits >= 1 and fits_sharded < job.batch_per_gpu:
        says = f"not useful: the batch does not fit, and sharding would add {_images(fits_sharded - fits)} to {fits}"
        less = f"batch={fits * job.n_ranks} fits (gradients are accumulated up to nbs); or {BUDGET}"
        return Finding(verdict="warn", says=says, evidence=evidence, remedy=less)
    if fits_sharded >= 1:
        most = min(fits_sharded, job.batch_per_gpu)
        says = f"sharding over {n} ranks could help: {_images(most)} a rank would fit, without it {fits}"
        less = f"batch={fits * job.n_ranks} is simpler; or {BUDGET}" if fits else BUDGET
        none = "autotune and Ultralytics have no sharded mode"
        return Finding(verdict="warn" if fits else "fail", says=says, evidence=evidence, remedy=f"{less}; {none}")
    says = f"not one image fits on a rank: the one case where a pipeline ({n} stages) could help"
    if (state + image) / n > room:
        says = f"not one image fits on a rank, nor on a stage of a pipeline of {n}"
    wanted = size(state + image + ALLOWANCE_BYTES)
    remedy = f"a smaller imgsz or model, or a device with {wanted}; or {BUDGET}; autotune has no pipeline mode"
    return Finding(verdict="fail", says=says, evidence=evidence, remedy=remedy)


def _measured(job: Weighed, state: float, image: float) -> str:
    s = job.sizes
    sides = " and ".join(f"{px}" for px in s.activations_px)
    buckets = f", and {size(s.gradients_bytes)} in DDP's buckets" if job.n_ranks > 1 else ""
    measured = f"{size(s.activations_bytes)} in fp32" + (f" (from {sides} pixels)" if len(s.activations_px) > 1 else "")
    return (
        f"measured for {job.title}: parameters {size(s.parameters_bytes)}, gradients {size(s.gradients_bytes)}, "
        f"{s.optimizer} {size(s.optimizer_bytes)}, EMA {size(s.ema_bytes)}, buffers {size(s.buffers_bytes)}, together "
        f"{size(state)} of state{buckets}; activations of an image "
        + (f"{measured}, taken as half of it in 16 bit: {size(image)}" if job.half else measured)
    )


def _images(n: int) -> str:
    return f"{n} image{'s' * (n != 1)}"


def _few(x: float) -> str:
    return f"{x:.0f}" if x >= 10 else f"{x:.1f}" if x >= 0.1 else f"{x:.2f}"
