"""What does one rank record a step, and what is its throughput? Raw columns and the formula on them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Final

HALVES_FRAC: Final = 0.02
"""Halves of a window that differ by no more than this are alike (SEARCH 3.3)."""
MIN_MEANS: Final = 5
T_975: Final = {5: 2.7764, 6: 2.5706, 7: 2.4469, 8: 2.3646, 9: 2.3060, 10: 2.2622}
"""Number of batch means -> Student t, 97.5 %, one degree of freedom less."""

PARTS: Final = ("wait_s", "prepare_s", "forward_s", "backward_s", "optimizer_s")
"""The columns that a step's time is made of; what they leave over is called rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Rate of one window; half_width_frac is None below five steps."""

    images_per_s: float
    half_width_frac: float | None
    n_steps: int
    images: float
    """Counted in it: the smaller of consumed and produced."""
    seconds: float


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
    prepare_s: list[float] = field(default_factory=list)
    """Host-to-device copy and preprocess_batch; this and the columns below are empty where a backend has no anatomy,
    and lack the last steps of a rank that failed."""
    forward_s: list[float] = field(default_factory=list)
    """Forward and loss."""
    backward_s: list[float] = field(default_factory=list)
    optimizer_s: list[float] = field(default_factory=list)
    """Optimizer step with clipping and EMA; 0 in a step that only accumulates."""
    turn: int = 1
    """Steps in which every loader worker delivers once; where data is short, waits come in bursts with this period."""

    def throughput(self, start: int) -> Throughput | None:
        """Images per second of the window [start:], of one rank, with its interval.

        Total images / total time, where images = min(consumed, produced) and produced = consumed - (ready at the
        start - ready at the end): a queue that drains would overstate the rate that lasts (MEASURING 2). One batch of
        drain is the queue's own flicker and is not counted.
        The interval: ten batch means of seconds per image (SEARCH 3.2; Law and Kelton, Simulation Modeling, ch. 9),
        Student t with nine degrees of freedom; one mean a step, with fewer degrees, in a window of five to nine steps.
        Each mean holds whole turns of the loader, so there are fewer of them in a short window with many workers.

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
        means = self._means(start, start + n, min(10, n))
        half: float | None = None
        if len(means) in T_975 and rate > 0:
            mean = sum(means) / len(means)
            sd = (sum((m - mean) ** 2 for m in means) / (len(means) - 1)) ** 0.5
            half = T_975[len(means)] * sd / len(means) ** 0.5 / mean
            if n // self.turn >= MIN_MEANS:
                # What the steps after the last whole turn shift: they may hold a burst too many, or none.
                whole = n // self.turn * self.turn
                half += abs(seconds / n / ((self.end_s[start + whole - 1] - self.end_s[start - 1]) / whole) - 1)
        return Throughput(
            images_per_s=rate, half_width_frac=half, n_steps=n, images=max(produced, 0.0), seconds=seconds
        )

    def halves_differ(self, start: int, accumulate: int = 1) -> float | None:
        """Is the second half of the window [start:] slower or faster than the first? Then it has not been steady.

        Seconds per image of the two halves, five batch means each (Law and Kelton, ch. 9), by Student's two-sample t
        with pooled variance (SEARCH 3.3). The halves hold equally many whole optimizer cycles, the odd one in the
        middle is left out: else the one optimizer step more would look like a drift.

        Args:
            start: index of the first step of the window, at least 1.
            accumulate: batches per optimizer step (`optimizer_s` cannot tell: on CUDA it lags behind).

        Returns:
            Share by which the second half takes longer (negative: shorter) when that is more than HALVES_FRAC and
            significant at 95 %; else None, also in a window too short to tell (under ten steps).
        """
        n = len(self.end_s) - start
        half = n // accumulate // 2 * accumulate
        if start < 1 or half < 5:
            return None
        first, second = self._means(start, start + half, 5), self._means(start + n - half, start + n, 5)
        if len(first) < 5 or len(second) < 5:
            return None
        a, b = sum(first) / 5, sum(second) / 5
        variance = (sum((x - a) ** 2 for x in first) + sum((x - b) ** 2 for x in second)) / 8
        if a <= 0 or abs(b - a) <= HALVES_FRAC * a or abs(b - a) <= T_975[9] * (variance * 2 / 5) ** 0.5:
            return None
        return b / a - 1

    def _means(self, start: int, stop: int, k: int) -> list[float]:
        """Seconds per image of `k` equal stretches of the steps [start:stop].

        Stretches are whole turns, less what is left over in the end, and down to five where there are not `k` turns:
        cut anywhere, one of them holds a burst more than the next, and a rate that is known to 2 % seems uncertain by
        50 % (simulated: 8 workers, 40 steps). Below five turns they are cut anywhere all the same: too wide is honest.
        """
        turn = self.turn if (stop - start) // self.turn >= MIN_MEANS else 1
        n = (stop - start) // turn
        k = min(k, n)
        edges = [start + i * n // k * turn for i in range(k + 1)]
        return [
            (self.end_s[b - 1] - self.end_s[a - 1]) / sum(self.images[a:b])
            for a, b in itertools.pairwise(edges)
            if sum(self.images[a:b])
        ]
