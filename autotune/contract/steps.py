"""What does one rank record a step, and what is its throughput? Raw columns and the formula on them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Final

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
    """Host-to-device copy and preprocess_batch; this and the columns below are empty where a backend has no anatomy."""
    forward_s: list[float] = field(default_factory=list)
    """Forward and loss."""
    backward_s: list[float] = field(default_factory=list)
    optimizer_s: list[float] = field(default_factory=list)
    """Optimizer step with clipping and EMA; 0 in a step that only accumulates."""

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
