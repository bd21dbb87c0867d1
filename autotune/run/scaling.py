"""What does it cost that several ranks train together? From the rates of the same training with and without."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.contract import TrialResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """Seconds per step are images per step over images per second; what was not measured is None."""

    n_ranks: int
    step_s: float | None
    """n ranks, as the user trains."""
    local_step_s: float | None
    """The slowest of n ranks that exchange nothing and wait for nobody."""
    one_rank_step_s: float | None
    """One rank alone, with the batch that each of the n has."""
    exposed_frac: float | None
    """1 - step without communication / step: what all settings of communication together could gain at most. Below 0
    it is noise. DDP's own copying, and the wait for the slowest rank of each step, are in it (KNOBS 6)."""
    efficiency: float | None
    """Images/s of n ranks over n times those of one."""


def scaling_of(
    several: TrialResult, no_sync: TrialResult | None, one_rank: TrialResult | None, n_ranks: int
) -> Scaling:
    """The comparison of one configuration with its two probes; a probe that gave no number counts as none."""
    rate, local, alone = (
        r.images_per_s if r is not None and r.outcome.measured else None for r in (several, no_sync, one_rank)
    )
    batch = several.params.get("batch_per_gpu")
    each = int(batch) if batch else int(several.job.get("batch") or 0) / n_ranks
    return Scaling(
        n_ranks=n_ranks,
        step_s=n_ranks * each / rate if rate and each else None,
        local_step_s=n_ranks * each / local if local and each else None,
        one_rank_step_s=each / alone if alone and each else None,
        exposed_frac=1 - rate / local if rate and local else None,
        efficiency=rate / (n_ranks * alone) if rate and alone else None,
    )


def all_reduce_s(n_ranks: int, n_bytes: int, bus_bytes_per_s: float) -> float:
    """Seconds of one all-reduce: 2 (N - 1) / N x bytes / bus bandwidth (nccl-tests, PERFORMANCE.md; KNOBS 1.5)."""
    return 2 * (n_ranks - 1) / n_ranks * n_bytes / bus_bytes_per_s
