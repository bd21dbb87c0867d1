"""What do the rooms say to each other? Types, events, and the folders they are written to (standard library only).

SI units; suffixes `_s _bytes _j _frac _per_s`; counts are `n_`. Not measured is `None`, never -1 or 0.
Every file that carries `format` is refused by `from_json` when the number is newer than `FORMAT`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import types
import typing
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from autotune.errors import FormatError

FORMAT: Final = 1

Value = bool | int | float | str | None
"""What a knob can be set to; JSON keeps all of them apart."""
Params = dict[str, Value]
"""Knob name -> value."""
Role = Literal["baseline", "probe", "trial", "sentinel", "finalist", "train"]


class Outcome(StrEnum):
    """How a trial ended (DESIGN 4); every value but `ok` and `unstable` has an `error` line in the result."""

    OK = "ok"
    OOM = "oom"
    TIMEOUT = "timeout"
    CRASH = "crash"
    INVALID = "invalid"
    MISMATCH = "mismatch"
    UNSTABLE = "unstable"
    PRUNED = "pruned"
    INTERRUPTED = "interrupted"

    @property
    def measured(self) -> bool:
        """True where images_per_s is a measurement of what was asked for."""
        return self in (Outcome.OK, Outcome.UNSTABLE)


class Site(StrEnum):
    """Where a knob is set."""

    YOLO_ARG = "YOLO_ARG"
    ENV = "ENV"
    LAUNCH = "LAUNCH"
    PATCH = "PATCH"


class Training(StrEnum):
    """What a knob does to the training: same maths, other rounding, or another optimisation."""

    NEUTRAL = "neutral"
    NUMERICS = "numerics"
    SEMANTICS = "semantics"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One CUDA device as NVML sees it."""

    index: int
    uuid: str
    name: str
    mem_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What we run on; `fingerprint` is what must agree for two numbers to be compared."""

    format: int = FORMAT
    hostname: str
    cpu: str
    n_cores: int
    """Usable cores: affinity and cgroup quota, not the host's count."""
    n_cores_host: int
    """os.cpu_count(), which is what Ultralytics clamps workers by."""
    ram_bytes: int
    shm_bytes: int | None
    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    """Distribution name -> version, for python, torch, ultralytics, optuna, ..."""
    fingerprint: str = ""


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
    segment: SegmentSettings = field(default_factory=SegmentSettings)
    deadline_s: float = 600.0
    """Seconds from process start after which the whole tree is killed."""
    stall_s: float = 120.0
    """Seconds without a step (after the first one) after which the tree is killed."""
    seed: int = 0


T_975: Final = {5: 2.7764, 6: 2.5706, 7: 2.4469, 8: 2.3646, 9: 2.3060, 10: 2.2622}
"""Number of batch means -> Student t, 97.5 %, one degree of freedom less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Rate of one window; half_width_frac is None below five steps."""

    images_per_s: float
    half_width_frac: float | None
    n_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepColumns:
    """Raw per-step columns, all of one length; seconds since the process started (perf_counter)."""

    end_s: list[float] = field(default_factory=list)
    """When the batch ended."""
    wait_s: list[float] = field(default_factory=list)
    """Waiting for the loader before this step."""
    step_s: list[float] = field(default_factory=list)
    """From the end of the batch before to the end of this one (wait included)."""
    images: list[int] = field(default_factory=list)
    ready: list[int] = field(default_factory=list)
    """Batches ready in the loader at the end of the step (0 with workers=0)."""

    def throughput(self, start: int) -> Throughput | None:
        """Images per second of the window [start:], of one rank, with its interval.

        Total images / total time, where images = min(consumed, produced) and produced = consumed - (ready at the
        start - ready at the end): a queue that drains would overstate the rate that lasts (MEASURING 2). One batch of
        drain is the queue's own flicker and is not counted.
        The interval: ten batch means of seconds per image (SEARCH 3.2; Law and Kelton, Simulation Modeling, ch. 9),
        Student t with nine degrees of freedom; one mean a step, with fewer degrees, in a window of five to nine steps.

        Args:
            start: index of the first step of the window, at least 1 (the step before it starts the clock).

        Returns:
            None while the window is shorter than two steps.
        """
        n = len(self.end_s) - start
        if start < 1 or n < 2:
            return None
        seconds = self.end_s[-1] - self.end_s[start - 1]
        consumed = sum(self.images[start:])
        if seconds <= 0 or consumed <= 0:
            return None
        drained = self.ready[start - 1] - self.ready[-1]
        produced = consumed - (drained * consumed / n if drained > 1 else 0.0)
        rate = max(produced, 0.0) / seconds
        k = min(10, n)
        edges = [start + i * n // k for i in range(k + 1)]
        means = [
            (self.end_s[b - 1] - self.end_s[a - 1]) / sum(self.images[a:b])
            for a, b in itertools.pairwise(edges)
            if sum(self.images[a:b])
        ]
        half: float | None = None
        if len(means) in T_975 and rate > 0:
            mean = sum(means) / len(means)
            sd = (sum((m - mean) ** 2 for m in means) / (len(means) - 1)) ** 0.5
            half = T_975[len(means)] * sd / len(means) ** 0.5 / mean
        return Throughput(images_per_s=rate, half_width_frac=half, n_steps=n)


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
    """n_images, n_batches (per epoch and rank), epochs, n_closed_epochs, nc, accumulate, weight_decay."""
    phases_s: dict[str, float] = field(default_factory=dict)
    """import, build, cache, first_step, warmup, measure."""
    error: dict[str, str] | None = None
    """type, message, traceback of what ended it."""


JOB_TERMS: Final = (
    "start_s",
    "compile_s",
    "cache_build_s",
    "mosaic_epochs_s",
    "closed_epochs_s",
    "val_s",
    "save_s",
    "epoch_end_s",
)
"""Terms of T(job), MEASURING 4; the ones not measured are None in TrialResult.job_terms."""


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
    images_per_s: float | None = None
    """All ranks together; total images / total time of the measured window."""
    ci95_lo: float | None = None
    ci95_hi: float | None = None
    step_p50_s: float | None = None
    step_p90_s: float | None = None
    step_p99_s: float | None = None
    wait_frac: float | None = None
    """Share of the measured window spent waiting for data."""
    peak_mem_bytes: tuple[int, ...] = ()
    """One a rank."""
    energy_j: float | None = None
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalist:
    """Fresh runs of one configuration in the finalist stage."""

    name: Literal["baseline", "best", "best_yaml"]
    """best_yaml: the winner's projection onto plain YOLO keys, when it differs from the winner."""
    params: Params
    numbers: tuple[int, ...]
    """Trial numbers of its runs, in block order."""
    images_per_s: float | None = None
    """Geometric mean over the runs."""
    job_s: float | None = None
    speedup: float | None = None
    """Against the baseline's runs of the same blocks, on the objective; 1.0 for the baseline."""
    ci95_lo: float | None = None
    ci95_hi: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The claim: from finalist runs only (MEASURING 5)."""

    status: Literal["gain", "no_gain", "unconfirmed"]
    sentence: str
    """The claim in words."""
    n_blocks: int = 0
    finalists: tuple[Finalist, ...] = ()
    sigma_run_frac: float | None = None
    """Pooled run-to-run standard deviation of log throughput."""
    df: int = 0
    """Its degrees of freedom."""
    smallest_effect_frac: float | None = None
    """The smallest gain this comparison could have found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotTried:
    """A configuration the search did not start, and why."""

    params: Params
    price_s: float | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """summary.json: what the search concluded; with trials/ it is all that the report needs."""

    format: int = FORMAT
    stopped_because: str
    elapsed_s: float
    ledger_s: dict[str, float]
    """Seconds by purpose: setup, baseline, trials_ok, trials_lost, sentinels, finalists, report, overhead."""
    best_number: int | None
    """The search trial that won; its finalist runs are in the verdict."""
    verdict: Verdict
    importance: dict[str, float] = field(default_factory=dict)
    """PED-ANOVA share of each knob over feasible trials; empty when there are too few."""
    importance_note: str = ""
    n_feasible: int = 0
    not_tried: tuple[NotTried, ...] = ()
    frozen: dict[str, str] = field(default_factory=dict)
    """Knob of the space -> why it was not sampled here."""
    notes: tuple[str, ...] = ()
    """Lines the user should see: fallbacks of the baseline, an interrupted search, ..."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """run.json: the question this run answers."""

    format: int = FORMAT
    name: str
    command: str
    """The command line as typed, shell-quoted."""
    started: str
    """ISO 8601 wall clock with offset."""
    budget_s: float
    objective: str
    direction: Literal["minimize"] = "minimize"
    strategy: str
    space: str
    training: str
    """same, bounded or any."""
    seed: int
    backend: str
    simulated: bool
    """True when no real training was measured (synthetic backend)."""
    task: str
    device: str
    """'cpu' or '0', '0,1', ... as seen by the user."""
    gpus: tuple[str, ...] = ()
    n_ranks: int = 1
    train_args: dict[str, Any] = field(default_factory=dict)
    """The user's job: YOLO arguments with defaults of the embedded job filled in; `data` is the user's own file."""
    user_args: dict[str, Any] = field(default_factory=dict)
    """Only the key=value pairs that the user typed."""
    baseline_params: Params = field(default_factory=dict)
    resolved: dict[str, Any] = field(default_factory=dict)
    """optimizer, lr0, momentum, warmup_bias_lr that 'auto' became in the user's real job."""
    versions: dict[str, str] = field(default_factory=dict)
    git: str | None = None


# Events: appended to events.jsonl and passed to observers. t_s counts from the start of the run.


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """The first event."""

    t_s: float
    headline: str
    folder: str
    budget_s: float
    kind: Literal["run_started"] = "run_started"


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseStarted:
    """setup, baseline, search, finalists, report."""

    t_s: float
    phase: str
    note: str = ""
    kind: Literal["phase_started"] = "phase_started"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialStarted:
    """A process is about to be started."""

    t_s: float
    number: int
    role: Role
    changes: Params
    price_s: float | None
    kind: Literal["trial_started"] = "trial_started"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialProgress:
    """Live only, not journaled: what a running trial has measured so far."""

    t_s: float
    number: int
    phase: str
    n_steps: int
    images_per_s: float | None
    kind: Literal["trial_progress"] = "trial_progress"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEnded:
    """A trial has its result."""

    t_s: float
    changes: Params
    result: TrialResult
    kind: Literal["trial_ended"] = "trial_ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSkipped:
    """A proposal that was not started."""

    t_s: float
    not_tried: NotTried
    kind: Literal["trial_skipped"] = "trial_skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """The last event."""

    t_s: float
    exit_code: int
    sentence: str
    next_commands: tuple[str, ...] = ()
    kind: Literal["run_ended"] = "run_ended"


Event = RunStarted | PhaseStarted | TrialStarted | TrialProgress | TrialEnded | TrialSkipped | RunEnded
Observer = typing.Callable[[Event], None]

T = TypeVar("T")


def to_dict(obj: Any) -> Any:
    """Dataclass -> plain JSON types (recursive)."""
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {f.name: to_dict(getattr(obj, f.name)) for f in dataclasses.fields(obj)}
    if isinstance(obj, dict):
        return {str(k): to_dict(v) for k, v in obj.items()}
    if isinstance(obj, list | tuple):
        return [to_dict(v) for v in obj]
    if isinstance(obj, StrEnum):
        return obj.value
    return obj


def from_dict(cls: type[T], data: dict[str, Any]) -> T:
    """Plain JSON types -> dataclass; keys it does not know are refused.

    Raises:
        FormatError: the file is newer than this autotune, or a field is missing or unknown.
    """
    if isinstance(data, dict) and int(data.get("format", FORMAT)) > FORMAT:
        raise FormatError(
            f"{cls.__name__} has format {data['format']}, this autotune reads up to {FORMAT}",
            "update autotune: pip install -U yolo-autotune",
        )
    try:
        return typing.cast(T, _build(cls, data))
    except (TypeError, KeyError, ValueError) as e:
        raise FormatError(f"cannot read a {cls.__name__}: {e}", "the file is damaged or not one of autotune's") from e


def _build(tp: Any, value: Any) -> Any:
    """Value of JSON -> value of the annotated type, for the few shapes this contract uses."""
    if dataclasses.is_dataclass(tp) and isinstance(tp, type):
        if not isinstance(value, dict):
            raise TypeError(f"expected an object for {tp.__name__}")
        hints = typing.get_type_hints(tp)
        unknown = set(value) - {f.name for f in dataclasses.fields(tp)}
        if unknown:
            raise TypeError(f"unknown fields {sorted(unknown)}")
        return tp(**{k: _build(hints[k], v) for k, v in value.items()})
    origin = typing.get_origin(tp)
    if origin is tuple and value is not None:
        return tuple(_build(typing.get_args(tp)[0], v) for v in value)
    if origin is list:
        return [_build(typing.get_args(tp)[0], v) for v in value]
    if origin is dict:
        vt = typing.get_args(tp)[1]
        return {k: _build(vt, v) for k, v in value.items()}
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(tp) if a is not type(None)]
        return _build(inner[0], value) if value is not None and len(inner) == 1 else value
    if isinstance(tp, type) and issubclass(tp, StrEnum):
        return tp(value)
    return value


def write_json(path: Path, obj: Any) -> None:
    """Write whole or not at all: a temporary name, fsync, rename."""
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with tmp.open("w", encoding="utf-8") as f:
        json.dump(to_dict(obj), f, indent=1, ensure_ascii=False, allow_nan=False)
        f.write("\n")
        f.flush()
        os.fsync(f.fileno())
    tmp.replace(path)


def read_json(path: Path, cls: type[T]) -> T:
    """Read one of our files.

    Raises:
        FormatError: missing, damaged or newer than this autotune.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise FormatError(f"{path} does not exist", "is this a run folder or a trial folder of autotune?") from e
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as e:
        raise FormatError(f"{path} cannot be read: {e}") from e
    return from_dict(cls, data)


@dataclass(frozen=True, slots=True)
class TrialDir:
    """One object owns every path of a trial."""

    path: Path

    @property
    def spec(self) -> Path:
        """TrialSpec, written by the controller."""
        return self.path / "spec.json"

    @property
    def result(self) -> Path:
        """TrialResult, written by the controller."""
        return self.path / "result.json"

    @property
    def log(self) -> Path:
        """Stdout and stderr of all ranks."""
        return self.path / "log.txt"

    @property
    def stop(self) -> Path:
        """The controller makes this file to end the segment at the next step; its text is the reason."""
        return self.path / "stop"

    def rank(self, rank: int) -> Path:
        """RankRecord of one rank, written once by it at its end."""
        return self.path / f"rank{rank}.json"

    def stream(self, rank: int) -> Path:
        """One line a step while it runs: `end_s wait_s step_s images ready measuring(0|1)`, space separated."""
        return self.path / f"steps{rank}.txt"


@dataclass(frozen=True, slots=True)
class RunDir:
    """One object owns every path of a run."""

    path: Path

    @property
    def info(self) -> Path:
        """RunInfo."""
        return self.path / "run.json"

    @property
    def space(self) -> Path:
        """The space as used."""
        return self.path / "space.yaml"

    @property
    def machine(self) -> Path:
        """Machine."""
        return self.path / "machine.json"

    @property
    def study(self) -> Path:
        """Optuna's SQLite file."""
        return self.path / "study.db"

    @property
    def events(self) -> Path:
        """One event a line."""
        return self.path / "events.jsonl"

    @property
    def trials_csv(self) -> Path:
        """One row a trial that was run."""
        return self.path / "trials.csv"

    @property
    def summary(self) -> Path:
        """Summary."""
        return self.path / "summary.json"

    @property
    def best(self) -> Path:
        """The exported files."""
        return self.path / "best"

    @property
    def report(self) -> Path:
        """The one HTML file."""
        return self.path / "report.html"

    @property
    def trials(self) -> Path:
        """Folder of the trial folders."""
        return self.path / "trials"

    def trial(self, number: int) -> TrialDir:
        """Folder of one trial."""
        return TrialDir(self.trials / f"{number:04d}")


TRIALS_CSV_COLUMNS: Final = (
    "number",
    "role",
    "outcome",
    "job_s",
    "images_per_s",
    "ci95_lo",
    "ci95_hi",
    "wait_frac",
    "peak_mem_bytes",
    "energy_j",
    "took_s",
    "error",
)
"""Then one column a knob (PRODUCT B6); peak_mem_bytes is the largest rank's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Winner:
    """best/winner.json: the one carrier of a configuration; best.yaml is its projection onto YOLO keys."""

    format: int = FORMAT
    task: str
    train_args: dict[str, Any]
    """YOLO arguments of the user's job with the winner's values and the pinned optimizer."""
    env: dict[str, str] = field(default_factory=dict)
    patches: Params = field(default_factory=dict)
    n_ranks: int = 1
    params: Params = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    images_per_s: float | None = None
    """From the finalist runs; None when not confirmed."""
    sentence: str = ""
    simulated: bool = False
