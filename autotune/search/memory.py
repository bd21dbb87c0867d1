"""How much memory will a rank need with this batch, and does that fit? Learned from the trials' own peaks.

Activations grow with the batch, everything else (weights, gradients, optimizer, workspaces, libraries) does not, so
the peak is affine in the batch for one setting of precision, compile mode and the like (SEARCH 2.1, 5.3). Three answers
are kept apart: safe, hopeless, and not known; only what is hopeless is left out of a search.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from typing import Final

from autotune.contract import Outcome, Params, TrialResult
from autotune.machine.memory import spell_size

BATCH: Final = "batch_per_gpu"
ON_CUDA: Final = ("amp", "compile", "channels_last", "cache", "alloc_conf", "cudnn_benchmark")
ON_CPU: Final = ("amp", "compile", "channels_last", "cache", "workers", "prefetch_factor")
"""Knobs that move the line: it is fitted for each of their combinations. Loader workers count as memory on CPU only."""
HEADROOM_FRAC: Final = 0.08
"""Of the limit, kept free by what is called safe: images with more objects than any that a segment saw make the loss
larger, and validation comes on top (SEARCH 3.6, ULTRALYTICS 1.9)."""
NOISE_FRAC_CUDA: Final = 0.02
"""Standard deviation of a peak as a share of it, before residuals say better: SEARCH 5.3, not measured."""
NOISE_FRAC_CPU: Final = 0.01
"""The same of a resident set: at least twice what tests/bench/memory_model.py measured (results/LOG.md)."""
NOISE_DF: Final = 4
"""Degrees of freedom that this belief counts for, so that three points that happen to lie on a line are not trusted."""
CONFIDENCE: Final = 0.95
"""One-sided, of either end of a prediction."""
FAR: Final = 4.0
"""Beyond so many times the largest batch that was measured a line is not believed: other kernels, other workspaces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Peak bytes of one rank, with the ends of its one-sided 95 % intervals."""

    mem_bytes: float
    lower_bytes: float
    upper_bytes: float
    near: bool
    """Within FAR times the largest batch measured; beyond that it is a guess, neither safe nor hopeless."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Least squares through (batch, peak bytes) of one rank.

    Attributes:
        base_bytes: what a batch of none would need.
        per_image_bytes: what an image more needs; never below zero.
        batches: of the points.
        sigma_bytes: standard deviation of a point about the line.
        df: its degrees of freedom.
    """

    base_bytes: float
    per_image_bytes: float
    batches: tuple[int, ...]
    sigma_bytes: float
    df: int

    def predict(self, batch: int) -> Prediction:
        """The prediction interval of simple linear regression (Draper and Smith, Applied Regression Analysis, 1.4).

        y +- t(0.95, df) * s * sqrt(1 + 1/n + (x - mean)**2 / Sxx): it widens as x leaves the points.
        """
        from scipy.special import stdtrit

        n, mean = len(self.batches), sum(self.batches) / len(self.batches)
        sxx = sum((b - mean) ** 2 for b in self.batches)
        half = float(stdtrit(self.df, CONFIDENCE)) * self.sigma_bytes * sqrt(1 + 1 / n + (batch - mean) ** 2 / sxx)
        at = self.base_bytes + self.per_image_bytes * batch
        near = batch <= FAR * max(self.batches)
        return Prediction(mem_bytes=at, lower_bytes=at - half, upper_bytes=at + half, near=near)


def fit(points: Iterable[tuple[int, int]], noise_frac: float = NOISE_FRAC_CUDA) -> Line | None:
    """The line through (batch, peak bytes); None when all are of one batch.

    The variance is that of the residuals shrunk towards s0, `noise_frac` of the mean: (v0 s0**2 + SSE) / (v0 + n - 2)
    with v0 = NOISE_DF, the scaled inverse chi-squared prior of Gelman et al., Bayesian Data Analysis, 3.2 and 14.8. So
    two points, which leave no residual, have an interval too.
    """
    known = tuple(points)
    batches, peaks = tuple(b for b, _ in known), [p for _, p in known]
    n = len(known)
    if len(set(batches)) < 2:
        return None
    x, y = sum(batches) / n, sum(peaks) / n
    sxx = sum((b - x) ** 2 for b in batches)
    # More images never need less: a falling line is noise about a flat one.
    slope = max(0.0, sum((b - x) * (p - y) for b, p in known) / sxx)
    sse = sum((p - y - slope * (b - x)) ** 2 for b, p in known)
    df = NOISE_DF + n - 2
    variance = (NOISE_DF * (noise_frac * y) ** 2 + sse) / df
    return Line(base_bytes=y - slope * x, per_image_bytes=slope, batches=batches, sigma_bytes=sqrt(variance), df=df)


class MemoryModel:
    """Learns from results, answers for configurations.

    Args:
        limit_bytes: what one rank may use; None: nobody knows, and only what ran out of memory is hopeless.
        on_cpu: memory is that of the rank's processes, not of its device.
    """

    def __init__(self, limit_bytes: int | None, *, on_cpu: bool) -> None:
        self.limit_bytes = limit_bytes
        self._on_cpu = on_cpu
        self._points: dict[str, list[tuple[int, int]]] = {}
        self._failed_at: dict[str, int] = {}
        """Key -> the smallest batch that ran out of memory."""

    def learn(self, result: TrialResult) -> None:
        """Take in what a trial needed, of its worst rank; what it really ran with counts, where it says so."""
        if BATCH not in result.params:
            return
        ran = {name: result.effective.get(name, value) for name, value in result.params.items()}
        key, batch = self._key(ran), int(ran[BATCH] or 0)
        # An optimizer step lies behind it, or it would not have measured steps.
        if result.peak_mem_bytes and result.n_steps:
            self._points.setdefault(key, []).append((batch, max(result.peak_mem_bytes)))
        # On CUDA the host's memory runs out too (loader workers, /dev/shm); that says nothing of the device's.
        if result.outcome is Outcome.OOM and (self._on_cpu or "GPU" in (result.error or "")):
            self._failed_at[key] = min(batch, self._failed_at.get(key, batch))

    def line(self, params: Params) -> Line | None:
        """What is known of these settings; None while fewer than two batches were measured with them."""
        noise_frac = NOISE_FRAC_CPU if self._on_cpu else NOISE_FRAC_CUDA
        return fit(self._points.get(self._key(params), ()), noise_frac)

    def predict(self, params: Params) -> Prediction | None:
        """Peak of one rank; None where there is no line."""
        line = self.line(params)
        return line.predict(int(params[BATCH] or 0)) if line else None

    def why_not(self, params: Params) -> str | None:
        """Why a configuration need not be tried: it would run out of memory. None: it fits, or nobody knows.

        Predicted with confidence only: the lower end of the interval is over the limit. Beyond FAR times what was
        measured a configuration is tried in spite of its prediction, because what it costs is one trial: it runs out of
        memory, which settles every larger batch with these settings, or it becomes a point of the line.
        """
        if BATCH not in params:
            return None
        batch, failed_at = int(params[BATCH] or 0), self._failed_at.get(self._key(params))
        if failed_at is not None and batch >= failed_at:
            return f"batch_per_gpu={failed_at} ran out of memory with these settings"
        p = self.predict(params)
        if self.limit_bytes is None or p is None or not p.near or p.lower_bytes <= self.limit_bytes:
            return None
        return f"predicted {spell_size(p.mem_bytes)}, limit {spell_size(self.limit_bytes)}"

    def largest_safe(self, params: Params, most: int) -> int | None:
        """The largest batch that is safe with these settings: with the upper end of its prediction, HEADROOM_FRAC of
        the limit stays free, and nothing as small has run out of memory.

        Args:
            params: their batch does not matter.
            most: no larger one is asked for; beyond FAR times the largest that was measured none is called safe.

        Returns:
            0 when not even one image is safe; None when nobody knows: no line, or no limit.
        """
        line = self.line(params)
        if line is None or self.limit_bytes is None:
            return None
        failed_at = self._failed_at.get(self._key(params), most + 1)
        limit = (1 - HEADROOM_FRAC) * self.limit_bytes
        batches = range(min(most, int(FAR * max(line.batches)), failed_at - 1), 0, -1)
        return next((b for b in batches if line.predict(b).upper_bytes <= limit), 0)

    def _key(self, params: Params) -> str:
        return json.dumps({name: params[name] for name in (ON_CPU if self._on_cpu else ON_CUDA) if name in params})
