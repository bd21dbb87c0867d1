"""When does a segment stop warming up, and when has it measured enough? The same for every backend (MEASURING 2)."""

from __future__ import annotations

from enum import StrEnum
from statistics import median

from autotune.contract import SegmentSettings, StepColumns


class State(StrEnum):
    """WARMUP -> MEASURING -> DONE; each step moves along at most one arrow."""

    WARMUP = "warmup"
    MEASURING = "measuring"
    DONE = "done"


STEADY_FRAC = 0.05
"""Two-window test: the medians of the last two windows differ by less than this, or than their noise (SEARCH 3.3 uses
2 % over windows of 40 steps; a window here may be 2 steps of a slow CPU)."""


class Segment:
    """Judges one rank's steps; owns the raw columns.

    Args:
        settings: lengths asked for by the controller.
        accumulate: batches per optimizer step; windows are whole cycles of it.
        queue: batches that the loader prefetches (workers x prefetch_factor).
        buffer_steps: steps of the first epoch that must pass before the mosaic buffer is in its steady state; 0 when
            the dataset is larger than four buffers (MEASURING, table of traps).
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
        self._began_s: float | None = None

    def step(self, *, end_s: float, wait_s: float, step_s: float, images: int, ready: int = 0) -> State:
        """Take one finished step (times in seconds of one clock) and return the state after it."""
        if self._began_s is None:
            # The first step carries cuDNN, oneDNN and compile set-up: the clock of the warm-up starts after it.
            self._began_s = end_s
        s = self.steps
        s.end_s.append(end_s)
        s.wait_s.append(wait_s)
        s.step_s.append(step_s)
        s.images.append(images)
        s.ready.append(ready)
        if self.state is State.WARMUP:
            self._maybe_measure(end_s)
        elif self.state is State.MEASURING:
            self._maybe_done(end_s)
        return self.state

    def _maybe_measure(self, now_s: float) -> None:
        n = len(self.steps.end_s)
        elapsed = now_s - (self._began_s or now_s)
        if n < 2 or n % self.accumulate:
            return
        ready = self._warm(n, elapsed) and self._two_windows_agree()
        if ready or elapsed >= self.settings.warmup_cap_s:
            self.state = State.MEASURING
            self.measured_from = n
            self.steady = ready

    def _warm(self, n: int, elapsed: float) -> bool:
        """The fixed minimum of MEASURING 2, with the queue rule of SEARCH 3.3."""
        ready = self.steps.ready[-8:]
        settled = (
            n >= 2 * self.queue or self.steps.ready[-1] <= self.queue / 2 or (n > 8 and min(ready) >= self.queue - 1)
        )
        return (
            n >= max(self.settings.warmup_steps, 2 * self.accumulate)
            and elapsed >= self.settings.warmup_s
            and n >= self.buffer_steps
            and settled
        )

    def _two_windows_agree(self) -> bool:
        steps = self.steps.step_s[1:]  # the first one carries set-up and belongs to no window
        w = max(2, min(40, len(steps) // 3))
        last, before = steps[-w:], steps[-2 * w : -w]
        if len(before) < w:
            return False
        a, b = median(before), median(last)
        spread = median([abs(x - a) for x in before] + [abs(x - b) for x in last])
        # Standard error of a median: 1.253 sigma / sqrt(w), and sigma = 1.483 MAD, for normal noise (Rousseeuw and
        # Croux 1993); two of them, of a difference of two medians.
        noise = 2 * 1.253 * 1.483 * spread * (2 / w) ** 0.5
        return bool(abs(a - b) <= max(STEADY_FRAC * max(a, b), noise))

    def _maybe_done(self, now_s: float) -> None:
        assert self.measured_from is not None
        n = len(self.steps.end_s) - self.measured_from
        if n % self.accumulate:
            return
        elapsed = now_s - self.steps.end_s[self.measured_from - 1]
        if elapsed >= self.settings.measure_cap_s and n >= 2:
            self.state = State.DONE
            return
        if elapsed < self.settings.measure_s or n < max(self.settings.measure_steps, 5):
            return
        rate = self.steps.throughput(self.measured_from)
        if rate and rate.half_width_frac is not None and rate.half_width_frac <= self.settings.ci_target_frac:
            self.state = State.DONE
        elif elapsed >= 2 * self.settings.measure_s:
            # One extension, no more: run-to-run noise exceeds what a longer window could still remove (SEARCH 3.1).
            self.state = State.DONE
