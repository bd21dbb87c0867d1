"""What does a run ask, and what does it conclude?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from autotune.contract.words import FORMAT, Params, Value

FinalistName = Literal["baseline", "best", "second", "third", "best_yaml"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalist:
    """Fresh runs of one configuration in the finalist stage."""

    name: FinalistName
    """best: the winner; second, third: the other candidates, fastest first; best_yaml: the winner's projection onto
    plain YOLO keys, when it differs from the winner."""
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
class Comparison:
    """Baseline over winner on the objective, from interleaved blocks of fresh runs: above 1, the winner is faster."""

    speedup: float
    ci95_lo: float
    ci95_hi: float
    n_blocks: int
    sigma_run_frac: float
    """Run-to-run standard deviation of the logarithm."""
    df: int
    """Its degrees of freedom."""


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
class Numerics:
    """Does the loss with the winner's rounding go where the baseline's goes? (search/numerics.py)"""

    within: bool | None
    """Within the baseline's own spread; None: the runs cannot tell."""
    sentence: str
    changes: Params
    """The knobs that were looked at, as the winner has them; all others were the baseline's."""
    numbers: tuple[int, ...]
    """Trial numbers: the baseline, the same with the changes, the baseline on other batches."""
    n_steps: int = 0
    """Compared, from the first on."""
    difference_frac: float | None = None
    spread_frac: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """One knob of the winner set back to the baseline alone, measured in fresh runs beside the winner's."""

    knob: str
    value: Value
    """The winner's."""
    baseline: Value
    params: Params
    """The winner without this change; a knob that is inert without it may change too."""
    numbers: tuple[int, ...] = ()
    """Trial numbers of its runs; empty: not measured."""
    gain: float | None = None
    """Objective without the change over objective with it: above 1, the change helps."""
    ci95_lo: float | None = None
    ci95_hi: float | None = None
    note: str = ""
    """Why it was not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCertificate:
    """Does the winner live through the worst that its job will ask of the memory? Trial `number`, a probe, tried it."""

    holds: bool | None
    """None: it could not be looked at."""
    sentence: str
    number: int | None = None
    peak_bytes: tuple[int, ...] = ()
    """One a rank; the limit is of each."""
    limit_bytes: int | None = None
    evidence: dict[str, Value] = field(default_factory=dict)
    """What was run: imgsz, n_objects (in the most crowded batch), n_val_images, n_optimizer_steps, ..."""

    @property
    def warning(self) -> str:
        """What every sentence about the winner ends with when it does not fit; else empty."""
        return f"; MAY RUN OUT OF MEMORY: {self.sentence}" if self.holds is False else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Validation mAP against wall clock of two real trainings (--verify-accuracy), one list entry an epoch."""

    sentence: str
    seconds_each: float
    metric: str
    """Its column in Ultralytics' results.csv."""
    baseline_s: tuple[float, ...] = ()
    """Seconds since the start of the training at the end of each epoch."""
    baseline_value: tuple[float, ...] = ()
    winner_s: tuple[float, ...] = ()
    winner_value: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NotTried:
    """A configuration the search did not start, and why."""

    params: Params
    price_s: float | None
    reason: str
    predicted_oom: bool = False
    """Left out because memory would not suffice (search/memory.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """summary.json: what the search concluded; with trials/ it is all that the report needs."""

    format: int = FORMAT
    stopped_because: str
    elapsed_s: float
    ledger_s: dict[str, float]
    """Seconds by purpose: setup, baseline, trials_ok, trials_lost, sentinels, probes, finalists, report, accuracy,
    overhead."""
    best_number: int | None
    """The search trial that won; its finalist runs are in the verdict."""
    verdict: Verdict
    importance: dict[str, float] = field(default_factory=dict)
    """PED-ANOVA share of each knob over feasible trials; empty when there are too few."""
    importance_note: str = ""
    n_feasible: int = 0
    not_tried: tuple[NotTried, ...] = ()
    n_predicted_oom: int = 0
    """How many of `not_tried` would have run out of memory."""
    frozen: dict[str, str] = field(default_factory=dict)
    """Knob of the space -> why it was not sampled here."""
    notes: tuple[str, ...] = ()
    """Lines the user should see: fallbacks of the baseline, an interrupted search, ..."""
    numerics: Numerics | None = None
    """None: the winner rounds as the baseline does, or there was no time to look."""
    ablation: tuple[Ablation, ...] = ()
    """Which change of the winner mattered, largest gain first."""
    memory: MemoryCertificate | None = None
    accuracy: Accuracy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transport:
    """How the ranks talk to each other, as NCCL's own log said in the baseline."""

    nccl: str | None = None
    """Version, such as 2.30.7."""
    n_nodes: int | None = None
    pairs: dict[str, str] = field(default_factory=dict)
    """`0-1` (two ranks, the lower one first) -> P2P/NVLink, P2P/PCIe, P2P (over what is not known), SHM, NET/Socket,
    NET/IB, or NET/ and the name of another network. Only neighbours in NCCL's rings and trees are there."""
    bus_bytes_per_s: float | None = None
    """Of the slowest of those pairs, as NCCL's model of the machine has it; not measured."""
    env: dict[str, str] = field(default_factory=dict)
    """Variables that NCCL said were set, by the environment or by a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AtlasSeed:
    """The winner of an earlier run, tried first in this one (autotune/atlas.py)."""

    run: str
    """Name of the run that found it."""
    folder: str
    said: str
    """Which run that was, in words."""
    distance: float
    """Between its machine and job and these."""
    params: Params
    """What it changes in the user's settings here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """run.json: the question this run answers."""

    format: int = FORMAT
    name: str
    command: str
    """The command line as typed, shell-quoted."""
    resumed: tuple[str, ...] = ()
    """The command lines that went on with it, in order."""
    started: str
    """ISO 8601 wall clock with offset."""
    budget_s: float
    """With every resume: what had gone by then, and the new budget."""
    objective: str
    direction: Literal["minimize"] = "minimize"
    strategy: str
    space: str
    training: str
    """same, bounded or any."""
    seed: int
    backend: str
    simulated: bool
    """True when no real training was measured (synthetic backend, or a replay)."""
    replayed: str = ""
    """Name of the recording whose runs answered the trials (--replay)."""
    task: str
    device: str
    """'cpu' or '0', '0,1', ... as seen by the user."""
    gpus: tuple[str, ...] = ()
    n_ranks: int = 1
    mem_limit_bytes: int | None = None
    """What --mem-limit gave each rank; None: what the machine has."""
    train_args: dict[str, Any] = field(default_factory=dict)
    """The user's job: YOLO arguments with defaults of the embedded job filled in; `data` is the user's own file."""
    n_images: int | None = None
    """Training images of the dataset when the run began."""
    user_args: dict[str, Any] = field(default_factory=dict)
    """Only the key=value pairs that the user typed."""
    baseline_params: Params = field(default_factory=dict)
    domain: dict[str, tuple[Value, ...]] = field(default_factory=dict)
    """Knob -> values that the sampler chooses from, once the baseline has run; a resumed search keeps them."""
    resolved: dict[str, Any] = field(default_factory=dict)
    """optimizer, lr0, momentum, warmup_bias_lr that 'auto' became in the user's real job."""
    transport: Transport | None = None
    """Between the ranks, from the baseline's log; None with one rank, on CPU, or where the log names none."""
    assume_transport: str | None = None
    """--assume-transport."""
    nccl_set: dict[str, str] = field(default_factory=dict)
    """What the user had set of NCCL when the run began: variable -> `value (where)`."""
    versions: dict[str, str] = field(default_factory=dict)
    distributions: dict[str, str] = field(default_factory=dict)
    """Distribution -> exact version, of all that the training and autotune import (machine/distributions.py)."""
    data_folders: tuple[str, ...] = ()
    """Where images and labels lie, beside `data`: a container must find them at the same paths."""
    datasets_dir: str | None = None
    """What a relative `path:` of the dataset's YAML starts from; None: it is absolute, or not given."""
    git: str | None = None
    warnings: tuple[str, ...] = ()
    """What the checks of the machine warned of when the search began."""
    atlas: tuple[AtlasSeed, ...] = ()
    """From whose winners it starts, in the order in which they are tried."""

    @property
    def label(self) -> str:
        """What all that is said of this run begins with; empty where trainings were measured."""
        return "REPLAYED" if self.replayed else "SIMULATED" if self.simulated else ""


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
