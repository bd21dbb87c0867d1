"""What goes into a trial and what comes out of it?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from autotune.contract.probes import EpochEnd, Probe, Sizes
from autotune.contract.samples import Meanwhile
from autotune.contract.steps import StepColumns
from autotune.contract.words import FORMAT, Outcome, Params, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentSettings:
    """How long a measured segment warms up and measures (MEASURING 2)."""

    warmup_steps: int = 20
    warmup_s: float = 3.0
    warmup_cap_s: float = 30.0
    """Warm-up ends here even when not steady; the record then says steady=False."""
    measure_s: float = 10.0
    measure_steps: int = 20
    measure_cap_s: float = 60.0
    ci_target_frac: float = 0.02
    """Measuring may stop at `measure_s` once the half-width of the CI is this share of the mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds after which the whole tree is killed; each part of a trial's life has its own."""

    import_s: float = 180.0
    """From process start until the libraries are imported on every rank."""
    build_s: float = 600.0
    """Then until the training loop begins: dataset scan, image cache, model."""
    first_step_s: float = 300.0
    """Then until the first batch has ended; a compiling trial is given more by whoever makes the spec."""
    stall_s: float = 60.0
    """Then without a step on any one rank; the larger of this and of `stall_steps` median steps."""
    stall_steps: float = 20.0
    total_s: float = 600.0
    grace_s: float = 5.0
    """Between SIGTERM and SIGKILL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """This machine's place among several that train together (role train), in torchrun's terms."""

    n_nodes: int
    node_rank: int
    rdzv_endpoint: str
    """host:port of node 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSpec:
    """Everything that is needed to run one trial again."""

    format: int = FORMAT
    number: int
    role: Role
    backend: str
    task: str
    params: Params
    """Knob -> value this trial stands for (the baseline's: what the user's own arguments give)."""
    changes: Params
    """The part of `params` that the search chose against the baseline; only these can be a mismatch."""
    train_args: dict[str, Any]
    """YOLO arguments, complete, as given to the trainer class."""
    env: dict[str, str] = field(default_factory=dict)
    patches: Params = field(default_factory=dict)
    gpus: tuple[str, ...] = ()
    """CUDA_VISIBLE_DEVICES entries; empty means CPU."""
    n_ranks: int = 1
    """On this machine."""
    nodes: Nodes | None = None
    segment: SegmentSettings = field(default_factory=SegmentSettings)
    deadlines: Deadlines = field(default_factory=Deadlines)
    seed: int = 0
    probe: Probe | None = None
    """Set with role `probe`: what part of the step is measured alone."""
    trace_steps: int = 0
    """Steps written to a torch.profiler trace in place of a measurement; 0: none."""
    certify: bool = False
    """After its segment it goes on as probe `certificate` does; that memory counts."""
    mem_limit_bytes: int | None = None
    """Of one rank, measured as RankRecord.peak_mem_bytes; above it the trial is `oom`. None: what the machine has."""
    loss_steps: int = 0
    """Steps of probe `losses`."""
    n_images: int | None = None
    """Training images of the job, where the trial is given only some of them (probe `sizes`)."""
    private: bool = False
    """With role `train`: in a world of its own, as every trial is; nobody's trackers hear of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRecord:
    """What one rank writes at its end: raw samples; statistics are made by the controller."""

    format: int = FORMAT
    rank: int
    status: Literal["done", "stopped", "failed"]
    """done: the segment ran to its end; stopped: asked to by the controller (racing); failed: see error."""
    steps: StepColumns = field(default_factory=StepColumns)
    measured_from: int | None = None
    """Index of the first measured step; the window is [measured_from:]."""
    steady: bool | None = None
    peak_mem_bytes: int | None = None
    """Device memory reserved by torch on CUDA, peak RSS of rank and loader workers on CPU."""
    effective: dict[str, Any] = field(default_factory=dict)
    """Knob -> what was really in effect in the measured window, plus optimizer, lr0, momentum, ..."""
    resolved: dict[str, Any] = field(default_factory=dict)
    """What 'auto' became in this job: optimizer, lr0, momentum, warmup_bias_lr."""
    job: dict[str, Any] = field(default_factory=dict)
    """n_images, n_batches (per epoch and rank), epochs, n_closed_epochs, nc, accumulate, weight_decay, gradient_bytes
    (of one rank), buffer_steps (readback.buffer_steps)."""
    phases_s: dict[str, float] = field(default_factory=dict)
    """import, build, cache, first_step, warmup, measure."""
    error: dict[str, str] | None = None
    """type, message, traceback of what ended it."""
    began_s: float | None = None
    """time.monotonic() where the seconds of `steps` count from; None: they are simulated."""
    ended_s: float | None = None
    """time.monotonic() at the end: tells which of several ranks failed first."""
    sizes: Sizes | None = None
    """Of probe `sizes`."""
    losses: list[float] = field(default_factory=list)
    """Of probe `losses`: the loss of each step."""
    batch_ids: list[str] = field(default_factory=list)
    """Of probe `losses`: a checksum of each step's images; equal where the batches are."""
    epoch_end: EpochEnd | None = None
    """Of probe `epoch_end`."""
    certificate: dict[str, Any] = field(default_factory=dict)
    """Of probe `certificate`, what was run (MemoryCertificate.evidence)."""


JOB_TERMS: Final = (
    "start_s",
    "compile_s",
    "cache_build_s",
    "mosaic_epochs_s",
    "closed_epochs_s",
    "val_s",
    "save_s",
    "epoch_end_s",
    "warmup_s",
    "final_s",
)
"""Terms of T(job), MEASURING 4; the ones not known are None in TrialResult.job_terms. warmup_s: the optimizer steps
that only the warm-up epochs have, in which `accumulate` grows; final_s: evaluation of the best checkpoint, plots."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """One trial, judged. `job_s` and `job_terms` are filled in by the search room."""

    format: int = FORMAT
    number: int
    role: Role
    outcome: Outcome
    params: Params
    started_s: float
    """Seconds since the run began."""
    took_s: float
    job_s: float | None = None
    job_terms: dict[str, float | None] = field(default_factory=dict)
    job_estimated: tuple[str, ...] = ()
    """Names of the terms that were not measured with this configuration: estimated from the baseline's."""
    images_per_s: float | None = None
    """All ranks together; total images / total time of the measured window."""
    ci95_lo: float | None = None
    ci95_hi: float | None = None
    step_p50_s: float | None = None
    step_p90_s: float | None = None
    step_p99_s: float | None = None
    wait_frac: float | None = None
    """Share of the measured window spent waiting for data."""
    straggler_frac: float | None = None
    """Share of the step for which a rank waits in its backward pass for the slowest one, mean over ranks and steps;
    None with one rank, or where the parts of a step are unknown."""
    peak_mem_bytes: tuple[int, ...] = ()
    """One a rank."""
    parts_s: dict[str, float] = field(default_factory=dict)
    """Step anatomy: mean seconds per step of wait, prepare, forward, backward, optimizer and rest; empty: unknown."""
    probe: Probe | None = None
    """With role `probe`: what images_per_s is the rate of; no job_s belongs to it."""
    warm: bool = False
    """Forked by a preloaded parent: its import and build phases are shorter than any job's."""
    losses: tuple[float, ...] = ()
    """Of probe `losses`: mean over the ranks, a step each."""
    batch_ids: tuple[str, ...] = ()
    """Of probe `losses`: equal where the images of all ranks are, a step each."""
    epoch_end: EpochEnd | None = None
    """Of probe `epoch_end`; images_per_s is then the rate without mosaic."""
    certificate: dict[str, Any] = field(default_factory=dict)
    """Of probe `certificate`, what rank 0 ran."""
    energy_j: float | None = None
    """Of all GPUs over the measured window."""
    energy_j_per_image: float | None = None
    meanwhile: Meanwhile | None = None
    """What the machine did in the measured window; None: nobody looked."""
    n_steps: int = 0
    """Measured steps."""
    steady: bool | None = None
    effective: dict[str, Any] = field(default_factory=dict)
    resolved: dict[str, Any] = field(default_factory=dict)
    job: dict[str, Any] = field(default_factory=dict)
    phases_s: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    """One line: what happened."""
    hint: str | None = None
    """One line: what to do about it."""
    log_tail: tuple[str, ...] = ()
    """Last lines of the trial's log, for a crash."""


def interrupted(spec: TrialSpec, *, started_s: float, took_s: float, error: str) -> TrialResult:
    """The result of a trial that nobody waited for."""
    return TrialResult(
        number=spec.number,
        role=spec.role,
        outcome=Outcome.INTERRUPTED,
        params=spec.params,
        started_s=started_s,
        took_s=took_s,
        error=error,
        probe=spec.probe,
    )
