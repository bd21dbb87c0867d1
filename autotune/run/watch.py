"""What is a running trial doing, and has it run out of time? Read from the ranks' heartbeats while it runs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from autotune.contract import StepColumns, TrialDir, TrialSpec
from autotune.machine.memory import rank_memory_bytes, spell_size

WATCH_S = 0.5
OVER_TOTAL: Final = "still running after"
"""How the reason begins when the total deadline is over: the only one that the budget sets."""
OVER_MEMORY: Final = "is over its memory limit of"
"""In the reason when a rank needs more than the spec allows."""
MEDIAN_OF = 50
"""The stall deadline follows the last so many steps, so that the compiling ones at the start do not widen it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A running trial: `steps` holds the step before the window and then the measured ones."""

    phase: str
    steps: StepColumns = field(default_factory=StepColumns)
    n_steps: int = 0
    """Steps so far, warm-up included."""
    elapsed_s: float = 0.0


Watch = Callable[[Live], str | None]


class Watcher:
    """Called by the supervisor while the tree runs: deadlines of every rank, the live view, racing.

    A full training (role train) has no heartbeat and only the total deadline.
    """

    def __init__(self, spec: TrialSpec, directory: TrialDir, watch: Watch | None) -> None:
        self.spec = spec
        self.directory = directory
        self.watch = watch
        self.stop_reason: str | None = None
        self.log_bytes: int | None = None
        """Length of the log when a deadline was over: what follows is only the dying of the tree."""
        self._ranks = [_Rank(directory, rank, spec.n_ranks) for rank in range(spec.n_ranks)]
        self._next_watch_s = 0.0

    def __call__(self, elapsed_s: float) -> str | None:
        """Seconds since the start -> why the tree must die, or None."""
        if elapsed_s < self._next_watch_s:
            return None
        self._next_watch_s = elapsed_s + WATCH_S
        for rank in self._ranks:
            rank.read(elapsed_s)
        reason = self._over_memory() or self._late(elapsed_s)
        if reason:
            with contextlib.suppress(OSError):
                self.log_bytes = self.directory.log.stat().st_size
            return reason
        if self.watch and not self.stop_reason:
            first = self._ranks[0]
            live = Live(phase=first.phase, steps=first.measured, n_steps=first.n_steps, elapsed_s=elapsed_s)
            reason = self.watch(live)
            if reason:
                with contextlib.suppress(OSError):  # a full disk: asked again at the next look
                    self.directory.stop.write_text(reason, encoding="utf-8")
                    self.stop_reason = reason
        return None

    def _late(self, elapsed_s: float) -> str | None:
        """The deadline that is over, told with the ranks that are furthest behind: they hold up the others."""
        late = []
        if self.spec.role != "train":
            # A rank that has ended well may wait for those that have not.
            awaited = [r for r in self._ranks if not r.ended] or self._ranks
            late = [r for r in awaited if elapsed_s - r.since_s > self._limit_s(r)]
        over = elapsed_s > self.spec.deadlines.total_s
        if not late and not over:
            return None
        behind = min(r.progress for r in late or self._ranks)
        stuck = [r for r in late or self._ranks if r.progress == behind]
        names = " and ".join(f"rank {r.rank}" for r in stuck)
        # The one that stopped first: the others wait for it in a collective since then.
        since_s = min(r.since_s for r in stuck)
        what = stuck[0].say_late(f"{elapsed_s - since_s:.0f} s") if late else stuck[0].say()
        if len(stuck) > 1:
            what = re.sub("^is ", "are ", re.sub("^has ", "have ", what))
        others = [f"; rank {r.rank} {r.say()}" for r in self._ranks if r not in stuck]
        told = f"{names} {what}{''.join(others)}"
        return told if late else f"{OVER_TOTAL} {elapsed_s:.0f} s, its deadline: {told}"

    def _over_memory(self) -> str | None:
        """The rank that needs more than it may. A GPU's memory is judged by the ranks' records (run/outcome.py)."""
        limit = self.spec.mem_limit_bytes
        if limit is None or self.spec.gpus or self.spec.role == "train":
            return None
        for rank in self._ranks:
            if rank.pid is not None and not rank.ended and (used := rank_memory_bytes(rank.pid)) > limit:
                return f"rank {rank.rank} {OVER_MEMORY} {spell_size(limit)}: it uses {spell_size(used)}"
        return None

    def _limit_s(self, rank: _Rank) -> float:
        """Seconds that the rank may spend where it is now."""
        limits = self.spec.deadlines
        if rank.ended or rank.n_steps:
            return max(limits.stall_s, limits.stall_steps * rank.median_step_s)
        return {"build": limits.build_s, "first_step": limits.first_step_s}.get(rank.phase, limits.import_s)


PHASES = ("import", "build", "first_step")


class _Rank:
    """Follows one rank's heartbeat while it is written; times are the supervisor's seconds since the start."""

    def __init__(self, directory: TrialDir, rank: int, n_ranks: int) -> None:
        self.rank = rank
        self.n_ranks = n_ranks
        self.pid: int | None = None
        self.measured = StepColumns()
        self.n_steps = 0
        self.phase = "starting"
        self.ended = False
        """Its record is written."""
        self.since_s = 0.0
        """When its last sign of life was read: the beginning of its phase, or the end of its last step."""
        self._record = directory.rank(rank)
        self._stream = directory.stream(rank)
        self._last_steps_s: list[float] = []
        self._offset = 0

    @property
    def median_step_s(self) -> float:
        """Median of the last steps; 0 before the second one, for the first may have compiled."""
        return median(self._last_steps_s) if self._last_steps_s else 0.0

    @property
    def progress(self) -> tuple[bool, int, int]:
        """Orders ranks by how far they came."""
        phase = PHASES.index(self.phase) if self.phase in PHASES else 0
        return (self.ended, phase if not self.n_steps else len(PHASES), self.n_steps)

    def say(self) -> str:
        """Where it is, after its name."""
        if self.ended:
            return "has ended"
        if self.n_steps:
            return f"is at step {self.n_steps}"
        return {"build": "is building", "first_step": "is in its first step"}.get(self.phase, "is importing")

    def say_late(self, seconds: str) -> str:
        """What it failed to do in so many seconds, after its name."""
        if self.ended:
            return f"wrote the record, but did not end for {seconds}"
        if self.n_steps:
            return f"made no step for {seconds} after step {self.n_steps}"
        if self.phase == "first_step":
            return f"did not finish the first step in {seconds}"
        what = "dataset, cache and model" if self.phase == "build" else "the imports"
        return f"did not finish {what} in {seconds}"

    def read(self, elapsed_s: float) -> None:
        """Take what was written since the last call."""
        if not self.ended and self._record.exists():
            self.ended, self.since_s = True, elapsed_s
        for line in self._new_lines():
            if not self.ended:
                self.since_s = elapsed_s
            if line.startswith("# pid "):
                self.pid = int(line.split()[2])
            elif line.startswith("# "):
                self.phase = line[2:]
            else:
                self._step(line)

    def _new_lines(self) -> list[str]:
        try:
            with self._stream.open("rb") as f:
                f.seek(self._offset)
                data = f.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.decode("ascii").splitlines()

    def _step(self, line: str) -> None:
        end, wait, step, images, ready, measuring = line.split()
        self.n_steps += 1
        if self.n_steps > 1:
            self._last_steps_s = [*self._last_steps_s[1 - MEDIAN_OF :], float(step)]
        self.phase = "measuring" if measuring == "1" else "warm-up"
        if self.rank > 0:
            return  # the live view and racing follow rank 0, whose batches are as large as those of all others
        if measuring == "0":
            self.measured = StepColumns()  # keep only the last step before the window: it starts the clock
        self.measured.end_s.append(float(end))
        self.measured.wait_s.append(float(wait))
        self.measured.step_s.append(float(step))
        self.measured.images.append(int(images) * self.n_ranks)
        self.measured.ready.append(int(ready))
