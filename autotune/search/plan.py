"""What does the search have to be given? One Plan, and the shapes of the rooms it works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from autotune.contract import (
    Deadlines,
    Params,
    RunDir,
    RunInfo,
    SegmentSettings,
    StepColumns,
    Transport,
    TrialDir,
    TrialResult,
    TrialSpec,
    Value,
)
from autotune.machine.memory import MemoryLimit
from autotune.search.budget import Budget
from autotune.search.past import Past


class Prepared(Protocol):
    """What may be tried on this machine (space/space.py)."""

    @property
    def domain(self) -> dict[str, tuple[Value, ...]]:
        """Knob -> at least two values, the baseline's among them (or None, where it is inert)."""

    @property
    def frozen(self) -> dict[str, str]:
        """Knob -> why it is not sampled."""

    @property
    def baseline(self) -> Params:
        """What the user's own arguments give, for every knob of the space."""

    @property
    def seeds(self) -> tuple[Params, ...]:
        """Configurations to try first."""


class Applied(Protocol):
    """A configuration turned into settings (space/knobs.py)."""

    @property
    def train_args(self) -> dict[str, Any]:
        """YOLO arguments, complete but for data."""

    @property
    def env(self) -> dict[str, str]:
        """Environment variables."""

    @property
    def patches(self) -> Params:
        """Knobs that YOLO has no argument for."""


class SpacePort(Protocol):
    """The space of this run, with its job and its machine behind it; it keeps the last Prepared."""

    def prepare(
        self,
        effective: Mapping[str, Any],
        n_images: int | None,
        train_args: Mapping[str, Any] | None = None,
        transport: Transport | None = None,
    ) -> Prepared:
        """Domain and baseline.

        Args:
            effective: what the baseline really ran with; empty before it ran.
            n_images: training images, when known.
            train_args: the job itself, when the baseline only ran after a change (a halved batch); None: unchanged.
            transport: between the ranks, once the baseline's log has said it; None: unchanged.
        """

    def pin(self, resolved: Mapping[str, Any]) -> dict[str, Any]:
        """YOLO arguments that keep what `auto` became in the baseline (optimizer, lr0, momentum, ...)."""

    def canonical(self, params: Params) -> Params:
        """The one spelling of a configuration; inert values become None."""

    def materialise(self, params: Params) -> Applied:
        """Settings of a configuration: only what differs from the baseline is set."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a trial's process is given."""

    train_args: dict[str, Any]
    env: dict[str, str] = field(default_factory=dict)
    patches: Params = field(default_factory=dict)


class Live(Protocol):
    """What a running trial has done so far (run/trial.py)."""

    @property
    def phase(self) -> str:
        """Where it is."""

    @property
    def steps(self) -> StepColumns:
        """Measured steps."""

    @property
    def n_steps(self) -> int:
        """How many."""

    @property
    def elapsed_s(self) -> float:
        """Since its process started."""


Watch = Callable[[Live], str | None]
"""Called about twice a second; a returned string stops the segment and becomes the error of a `pruned` result."""


class RunTrial(Protocol):
    """run.trial.run_trial, or whatever answers like it."""

    def __call__(
        self, spec: TrialSpec, directory: TrialDir, *, started_s: float, watch: Watch | None = None
    ) -> TrialResult:
        """Run one trial in its folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that a search needs to know; objective, strategy, seed, backend and task stand in `info`."""

    run_dir: RunDir | None
    """Exists, and is ours; None: the search is in memory only, and leaves nothing behind."""
    info: RunInfo
    space: SpacePort
    budget: Budget
    data_for: Callable[[Value], str]
    """Value of YOLO's `cache` -> the `data` argument of a trial with it."""
    trial_args: dict[str, Any] = field(default_factory=dict)
    """YOLO arguments of trials only (plots, val, save off), merged last."""
    baseline_env: dict[str, str] = field(default_factory=dict)
    """Environment of the baseline only: what makes it log over what its ranks talk."""
    segment: SegmentSettings = field(default_factory=SegmentSettings)
    n_images: int | None = None
    images_decoded_per_s: float | None = None
    """Of one rank, from a probe of about 200 images; None: guessed until a trial has filled a cache."""
    trial_limit_s: float = 600.0
    """No trial may take longer, whatever the budget."""
    deadlines: Deadlines = field(default_factory=Deadlines)
    """Of every trial; its total is cut to what the budget and the limit above leave."""
    report_s: float = 10.0
    """Kept back for exports and the report, which come after the search."""
    memory: MemoryLimit = field(default_factory=MemoryLimit)
    """What one rank may use."""
    max_trials: int | None = None
    """Search trials at most (the dry run's ten); None: as many as the budget holds."""
    only: tuple[Params, ...] | None = None
    """Configurations that can be tried (those of a recording, canonical); None: all of the domain."""
    notes: tuple[str, ...] = ()
    """What the user should see beside the result, known before the first trial."""
    past: Past | None = None
    """What an earlier part of this search left in `run_dir`; None: it begins here."""

    @property
    def probe_segment(self) -> SegmentSettings:
        """A third of a segment, for a probe: ceilings are read to a few per cent, and no choice rests on them.

        The warm-up's cap stays: a loader that is timed before its mosaic buffer is full, and decodes more, would give
        a ceiling below what the trial itself reached.
        """
        return replace(
            self.segment,
            warmup_steps=max(2, self.segment.warmup_steps // 3),
            warmup_s=self.segment.warmup_s / 3,
            measure_s=self.segment.measure_s / 3,
            measure_steps=max(5, self.segment.measure_steps // 3),
            measure_cap_s=self.segment.measure_cap_s / 3,
        )

    @property
    def given_s(self) -> float:
        """Seconds that the user gave for this part of the search: of these are the shares of what every part does."""
        return self.budget.total_s - (self.past.elapsed_s if self.past else 0.0)

    def probing(self, spec: TrialSpec) -> TrialSpec:
        """A probe's spec, from that of the trial which it is a part of."""
        if spec.probe == "epoch_end":  # its rate goes into the time of the job, as a trial's does
            return spec
        if spec.probe not in ("no_sync", "one_rank"):
            return replace(spec, segment=self.probe_segment)
        # Compared with a trial's own step to a few per cent, so measured for 20 steps at least.
        segment = replace(self.probe_segment, measure_steps=20, measure_cap_s=self.segment.measure_cap_s)
        spec = replace(spec, segment=segment)
        return spec if spec.probe == "no_sync" else on_one_rank(spec)


def on_one_rank(spec: TrialSpec) -> TrialSpec:
    """One rank alone with its share of the batch; with its share of nbs, so that it accumulates as often."""
    args = dict(spec.train_args)
    for key in args.keys() & {"batch", "nbs"}:
        args[key] = max(1, int(args[key]) // spec.n_ranks)
    if args.get("device") not in (None, "cpu"):
        args["device"] = "0"
    return replace(spec, n_ranks=1, gpus=spec.gpus[:1], train_args=args)
