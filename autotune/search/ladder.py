"""Which batch is the largest that is safe, and which is the fastest of those? Climb, fit, prove.

Batches grow by two, each a short real trial. Their peaks make the memory model's line, which says how far it is safe to
climb; their throughput says when climbing has become pointless. What is called safe in the end has run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import hypot
from typing import Final, Protocol

from autotune.contract import Outcome, TrialResult
from autotune.errors import NoTrialError
from autotune.machine.memory import spell_size
from autotune.search.memory import BATCH, HEADROOM_FRAC, MemoryModel, Prediction

INTERRUPTED: Final = "interrupted"
START: Final = 4
"""Images of the first rung: small enough to fit nearly anywhere; it is halved where it does not."""
FLAT_RUNGS: Final = 2
"""After so many rungs in a row without a gain the climb ends."""
PROOFS: Final = 4
"""Trials at most at what the model calls the largest safe batch: each one teaches it."""
STEP_DOWN: Final = 0.75
"""Where a batch failed that the line called safe, the line is wrong: no batch above this share of it is believed."""
DEARER: Final = 1.5
"""A rung may take so many times the one before it: its steps are up to twice as long, its start-up is not."""
UNKNOWN_CI_FRAC: Final = 0.10
"""Half-width of a throughput without an interval: wider ones are called unstable (run/outcome.py)."""
MULTIPLE: Final = 8
"""Batches above twice this are rounded down to a multiple: what GPUs' matrix units like, and people write."""


class Measure(Protocol):
    """A short real trial at a batch."""

    def __call__(self, batch: int, limit_s: float) -> TrialResult:
        """Run it; `batch` is of one rank, `limit_s` its deadline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One batch that was run."""

    batch: int
    result: TrialResult
    predicted: Prediction | None = None
    """Of its peak, before it ran."""

    @property
    def peak_bytes(self) -> int | None:
        """Of the worst rank."""
        return max(self.result.peak_mem_bytes, default=None)

    @property
    def rate(self) -> float:
        """Images/s of all ranks; 0 when it was not measured."""
        return self.result.images_per_s or 0.0 if self.result.outcome.measured else 0.0

    @property
    def half_width(self) -> float:
        """Of the interval of `rate`."""
        lo, hi = self.result.ci95_lo, self.result.ci95_hi
        return UNKNOWN_CI_FRAC * self.rate if lo is None or hi is None else (hi - lo) / 2

    def beats(self, other: Rung) -> bool:
        """True when it is faster by more than the interval of the difference."""
        return self.rate - other.rate > hypot(self.half_width, other.half_width)


@dataclass(slots=True)
class Ladder:
    """What was run, and why no more of it.

    Attributes:
        limit_bytes: of one rank.
        rungs: in the order in which they ran.
        stopped_because: of the climb.
        unproven: a batch that the model calls safe, and for whose proof no time was left.
    """

    limit_bytes: int
    rungs: list[Rung] = field(default_factory=list)
    stopped_because: str = ""
    unproven: int | None = None

    def is_safe(self, rung: Rung) -> bool:
        """It ran, and the head-room stayed free."""
        peak = rung.peak_bytes
        return rung.rate > 0 and peak is not None and peak <= (1 - HEADROOM_FRAC) * self.limit_bytes

    def largest(self) -> Rung | None:
        """The largest batch that ran and left the head-room free."""
        return max((r for r in self.rungs if self.is_safe(r)), key=lambda r: r.batch, default=None)

    def fastest(self) -> Rung | None:
        """The smallest safe batch that no other one beats: a smaller batch costs less memory and changes less."""
        safe = sorted((r for r in self.rungs if self.is_safe(r)), key=lambda r: r.batch)
        best = max(safe, key=lambda r: r.rate, default=None)
        return next((r for r in safe if best and not best.beats(r)), None)


def climb(
    measure: Measure,
    model: MemoryModel,
    *,
    limit_bytes: int,
    most: int,
    left_s: Callable[[], float],
    seen: Callable[[Rung], object] = lambda rung: None,
) -> Ladder:
    """Find the largest safe and the fastest batch of a rank.

    Args:
        measure: runs a trial.
        model: of memory; learns from each.
        limit_bytes: what one rank may use.
        most: images of the training set for a rank: no batch is larger.
        left_s: seconds left for all of it.
        seen: told of each rung as it ends.

    Returns:
        After Ctrl-C what there is by then, `stopped_because=INTERRUPTED`; an interrupt before that passes through.

    Raises:
        NoTrialError: not even one image a rank could be run.
    """
    ladder = Ladder(limit_bytes)

    def run(batch: int) -> Rung:
        predicted = model.predict({BATCH: batch})
        result = measure(batch, left_s())
        model.learn(result)
        rung = Rung(batch=batch, result=result, predicted=predicted)
        ladder.rungs.append(rung)
        seen(rung)
        return rung

    def dear() -> bool:
        return DEARER * ladder.rungs[-1].result.took_s > left_s()

    try:
        _first(run, min(START, most))
        ladder.stopped_because = _climb(ladder, model, run, dear, most)
        _prove(ladder, model, run, dear, most)
    except KeyboardInterrupt:
        if not any(rung.rate for rung in ladder.rungs):
            raise
        ladder.stopped_because = INTERRUPTED
    return ladder


def _first(run: Callable[[int], Rung], batch: int) -> None:
    """The first rung that runs: halved while memory is short."""
    rung = run(batch)
    while rung.rate == 0:
        result = rung.result
        if result.outcome is not Outcome.OOM or rung.batch == 1:
            what = f"batch {rung.batch} a rank: {result.outcome}: {result.error or 'no throughput'}"
            raise NoTrialError(f"no batch could be run; {what}", result.hint or "its log.txt says more")
        rung = run(rung.batch // 2)


def _climb(ladder: Ladder, model: MemoryModel, run: Callable[[int], Rung], dear: Callable[[], bool], most: int) -> str:
    """Double the batch until it is pointless, unsafe, or too dear; returns which."""
    best, n_flat = ladder.rungs[-1], 0
    while n_flat < FLAT_RUNGS:
        batch = 2 * ladder.rungs[-1].batch
        if batch > most:
            return f"the training set has {most} images a rank"
        if why_not := model.why_not({BATCH: batch}):
            return why_not
        p = model.predict({BATCH: batch})
        # To run it does no harm, so here the prediction itself decides, and not the upper end of its interval.
        if p is not None and p.mem_bytes > (1 - HEADROOM_FRAC) * ladder.limit_bytes:
            room = f"{spell_size(ladder.limit_bytes)} less {HEADROOM_FRAC:.0%} head-room"
            return f"batch {batch} a rank would not be safe: predicted {spell_size(p.mem_bytes)}, limit {room}"
        if dear():
            return "no time for a larger batch"
        rung = run(batch)
        if rung.rate == 0:
            return f"batch {batch}: {rung.result.outcome}: {rung.result.error or 'no throughput'}"
        n_flat = 0 if rung.beats(best) else n_flat + 1
        best = max(best, rung, key=lambda r: r.rate)
    return f"{FLAT_RUNGS} larger batches in a row were not faster than batch {best.batch}"


def _prove(ladder: Ladder, model: MemoryModel, run: Callable[[int], Rung], dear: Callable[[], bool], most: int) -> None:
    """Run the largest batch that the model calls safe, until it is one that has run."""
    for _ in range(PROOFS):
        batch = model.largest_safe({BATCH: 1}, most) or 0
        failed = [r.batch for r in ladder.rungs if r.rate == 0]
        batch = min([batch, *(int(STEP_DOWN * b) for b in failed)])
        batch = batch // MULTIPLE * MULTIPLE if batch > 2 * MULTIPLE else batch
        largest = ladder.largest()
        if batch <= (largest.batch if largest else 0):
            return
        if dear():
            ladder.unproven = batch
            return
        run(batch)
