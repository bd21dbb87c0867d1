"""When does a segment stop warming up, and when has it measured enough? The same for every backend (MEASURING 2)."""

from __future__ import annotations

from enum import StrEnum
from statistics import median
from typing import Final

from autotune.contract import SegmentSettings, StepColumns


class State(StrEnum):
    """WARMUP -> STEADY -> MEASURING -> DONE; a recompile leads back to WARMUP.

    warmup: the fixed minimum has not passed. steady: it has, and the two-window test has not agreed yet.
    """

    WARMUP = "warmup"
    STEADY = "steady"
    MEASURING = "measuring"
    DONE = "done"


STEADY_FRAC: Final = 0.05
"""Two-window test: the medians of the last two windows differ by less than this, or than their noise (SEARCH 3.3 uses
2 % over windows of 40 steps; a window here may be 2 steps of a slow CPU)."""
LONG_WINDOW: Final = 20
LONG_STEADY_FRAC: Final = 0.02
"""What SEARCH 3.3 says, for windows of so many steps and more."""
FULL_STEPS: Final = 8
"""A queue that stays full for so many steps is fed faster than it is eaten. Should it drain afterwards all the same,
the window counts what was produced."""
MAX_RESTARTS: Final = 3
"""A setting that compiles more often than this is measured with its compiles, as not steady: they are what it does."""


class Segment:
    """Judges one rank's steps; owns the raw columns.

    Args:
        settings: lengths asked for by the controller.
        accumulate: batches per optimizer step; windows are whole cycles of it.
        queue: batches that the loader prefetches (workers x prefetch_factor).
        buffer_steps: steps that must pass before the mosaic buffer is in its steady state (readback.buffer_steps).
    """

    def __init__(
        self, settings: SegmentSettings, *, accumulate: int = 1, queue: int = 0, buffer_steps: int = 0
    ) -> None:
        self.settings = settings
        self.accumulate = max(accumulate, 1)
        self.queue = queue
        self.buffer_steps = buffer_steps
        self.steps = StepColumns()
        self.state = State.WARMUP
        self.measured_from: int | None = None
        self.steady: bool | None = None
        self.n_restarts = 0
        self._began_s: float | None = None
        self._from = 0
        """Steps before this one do not count towards the warm-up: the last of them compiled."""
        self._compiles = 0

    def step(
        self, *, end_s: float, wait_s: float, step_s: float, images: int, ready: int = 0, compiles: int = 0
    ) -> State:
        """Take one finished step and return the state after it.

        Args:
            end_s: when it ended; all times in seconds of one clock.
            wait_s: what it waited for data.
            step_s: since the end of the step before.
            images: trained on in it.
            ready: batches that lie ready in the loader now.
            compiles: graphs compiled in this process so far.
        """
        s = self.steps
        s.end_s.append(end_s)
        s.wait_s.append(wait_s)
        s.step_s.append(step_s)
        s.images.append(images)
        s.ready.append(ready)
        if self._began_s is None:
            # The first step carries cuDNN, oneDNN and compile set-up: the clock of the warm-up starts after it.
            self._began_s = end_s
        elif compiles > self._compiles and self.state is not State.DONE:
            self._recompiled(end_s)
        self._compiles = compiles
        if self.state in (State.WARMUP, State.STEADY):
            self._maybe_measure(end_s)
        elif self.state is State.MEASURING:
            self._maybe_done(end_s)
        return self.state

    def _recompiled(self, now_s: float) -> None:
        """A recompile is an event, not noise: it voids the window, and the queue has filled meanwhile (SEARCH 3.3)."""
        self.n_restarts += 1
        if self.n_restarts > MAX_RESTARTS:
            return
        self.state = State.WARMUP
        self.measured_from = self.steady = None
        self._from = len(self.steps.end_s)
        self._began_s = now_s

    def _maybe_measure(self, now_s: float) -> None:
        n = len(self.steps.end_s)
        assert self._began_s is not None
        elapsed = now_s - self._began_s
        if self.state is State.WARMUP and self._warm(n - self._from, elapsed) and n >= self.buffer_steps:
            self.state = State.STEADY
        if n < 2 or n == self._from or n % self.accumulate:
            return
        steady = self.state is State.STEADY and self._two_windows_agree()
        if steady or elapsed >= self.settings.warmup_cap_s:
            self.state = State.MEASURING
            self.measured_from = n
            self.steady = steady and self.n_restarts <= MAX_RESTARTS

    def _warm(self, n: int, elapsed: float) -> bool:
        """The fixed minimum of MEASURING 2, of `n` steps since the last compile, with the queue rule of SEARCH 3.3."""
        ready = self.steps.ready[-FULL_STEPS:]
        drained = self.steps.ready[-1] <= self.queue / 4
        full = n > FULL_STEPS and min(ready) >= self.queue - 1
        return (
            n >= max(self.settings.warmup_steps, 2 * self.accumulate)
            and elapsed >= self.settings.warmup_s
            and (n >= 2 * self.queue or drained or full)
        )

    def _two_windows_agree(self) -> bool:
        steps = self.steps.step_s[max(1, self._from) :]  # the first one carries set-up and belongs to no window
        w = max(2, min(40, len(steps) // 3))
        last, before = steps[-w:], steps[-2 * w : -w]
        if len(before) < w:
            return False
        a, b = median(before), median(last)
        spread = median([abs(x - a) for x in before] + [abs(x - b) for x in last])
        # Standard error of a median: 1.253 sigma / sqrt(w), and sigma = 1.483 MAD, for normal noise (Rousseeuw and
        # Croux 1993); two of them, of a difference of two medians.
        noise = 2 * 1.253 * 1.483 * spread * (2 / w) ** 0.5
        frac = LONG_STEADY_FRAC if w >= LONG_WINDOW else STEADY_FRAC
        return bool(abs(a - b) <= max(frac * max(a, b), noise))

    def _maybe_done(self, now_s: float) -> None:
        assert self.measured_from is not None
        if self.n_restarts > MAX_RESTARTS:
            self.steady = False
        n = len(self.steps.end_s) - self.measured_from
        if n % self.accumulate:
            return
        elapsed = now_s - self.steps.end_s[self.measured_from - 1]
        if elapsed >= self.settings.measure_cap_s and n >= 2:
            self.state = State.DONE
            return
        # At least one turn of the loader's queue (4 x workers batches with the stock prefetch), where the cap allows,
        # and five of its workers' turns: an interval needs as many means.
        if elapsed < self.settings.measure_s or n < max(
            self.settings.measure_steps, 5, self.queue, 5 * self.steps.turn
        ):
            return
        rate = self.steps.throughput(self.measured_from)
        half = rate.half_width_frac if rate else None
        narrow = half is not None and half <= self.settings.ci_target_frac
        # One extension by 100 %, no more: run-to-run noise exceeds what a longer window could still remove (SEARCH
        # 3.1), and a window whose halves still differ then is judged unstable.
        if elapsed >= 2 * self.settings.measure_s or (
            narrow and self.steps.halves_differ(self.measured_from, self.accumulate) is None
        ):
            self.state = State.DONE
