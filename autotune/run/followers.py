"""Which trials may one process measure in turn, and which of them is running? A trial and its followers.

A process that has measured one configuration measures the next ones where they differ only in what it can change:
their start is then a trainer's, and not a process's. tests/bench/live.py says what that saves, and what it does to
the figures; no search asks for it yet (results/LOG.md, 2026-11-30). One rank only: several would have to agree on each
end and begin a process group anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from autotune.contract import Outcome, RankRecord, TrialDir, TrialResult, TrialSpec
from autotune.run.watch import Watch, Watcher

LIVE_ARGS: Final = frozenset({"batch", "workers", "cache", "amp", "data"})
"""Of YOLO; `data` because each mode of the cache has its own view of the dataset."""
LIVE_PATCHES: Final = frozenset({"workers", "prefetch_factor"})


@dataclass(frozen=True, slots=True)
class Part:
    """One of the trials of a process."""

    spec: TrialSpec
    directory: TrialDir
    watch: Watch | None = None


def may_follow(spec: TrialSpec, first: TrialSpec) -> bool:
    """May the process of `first` measure this trial after it?

    Only search trials of one rank that compile nothing: a compiled graph is made for the batch that it saw first. A
    sentinel, a finalist or an ablation is compared with a fresh process, and is one.
    """
    if any(s.role != "trial" or s.n_ranks > 1 or s.nodes or s.train_args.get("compile") for s in (spec, first)):
        return False
    if any(s.probe or s.trace_steps or s.certify for s in (spec, first)):
        return False
    return _fixed(spec) == _fixed(first)


def _fixed(spec: TrialSpec) -> TrialSpec:
    """The part of a spec in which trials of one process are alike."""
    return replace(
        spec,
        number=0,
        params={},
        changes={},
        train_args={k: v for k, v in spec.train_args.items() if k not in LIVE_ARGS},
        patches={k: v for k, v in spec.patches.items() if k not in LIVE_PATCHES},
        deadlines=replace(spec.deadlines, total_s=0.0),
    )


def believed(result: TrialResult, spec: TrialSpec) -> bool:
    """Does a follower's result stand? What failed in a used process may succeed in a fresh one, and is run there."""
    checked = spec.mem_limit_bytes is None or bool(result.peak_mem_bytes)
    return checked and (result.outcome.measured or result.outcome is Outcome.PRUNED)


class Relay:
    """Watches the trials of one process in turn: each has its own deadlines, racing and limit of memory."""

    def __init__(self, watchers: Sequence[Watcher], directories: Sequence[TrialDir]) -> None:
        self._watchers = watchers
        self._directories = directories
        self._began_s = [0.0]

    def __call__(self, elapsed_s: float) -> str | None:
        """Seconds since the start of the process -> why its tree must die, or None."""
        n = len(self._began_s)
        if n < len(self._watchers) and self._directories[n].stream(0).exists():
            self._began_s.append(elapsed_s)
        return self._watchers[len(self._began_s) - 1](elapsed_s - self._began_s[-1])


def durations_s(records: Sequence[RankRecord | None], began_s: float, took_s: float) -> list[float]:
    """Seconds that each trial of a process took: from the end of the one before to its own record.

    Args:
        records: of rank 0 of the trials that began, in turn.
        began_s: time.monotonic() at the start of the process.
        took_s: of the process; the last trial has what the others leave.
    """
    took: list[float] = []
    for record in records[:-1]:
        assert record is not None  # the next trial began after it was written
        assert record.ended_s is not None
        took.append(record.ended_s - began_s - sum(took))
    return [*took, took_s - sum(took)]
