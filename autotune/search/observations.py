"""What did the trials teach that the model can be fitted to, and how noisy is it?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from autotune.contract import Outcome, Params, TrialResult
from autotune.search.proposals import key_of
from autotune.search.ran import Ran

NOISE_FRAC: Final = 0.02
"""Run-to-run noise of log seconds per image before repeats say better."""
PRUNED_SD: Final = 0.04
"""Of a trial that racing stopped: fewer steps."""
PRIOR_DF: Final = 2.0
"""Weight of NOISE_FRAC in the pooled noise."""
MOST_WITHIN_SD: Final = 0.15
"""Of a run, from its own interval: beyond that it says nothing more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one trial taught.

    Attributes:
        params: its configuration.
        image_s: seconds per image of all ranks together; None where it measured none.
        noise_frac: standard deviation of its logarithm, from run to run and within the run.
        wait_frac: share of the step spent waiting for data; None: unknown.
        exchange_frac: share of the step in which the ranks exchange what nothing hides; None: unknown.
        mem_bytes: peak of the worst rank; None: unknown.
        oom: it ran out of memory.
    """

    params: Params
    image_s: float | None = None
    noise_frac: float = NOISE_FRAC
    wait_frac: float | None = None
    exchange_frac: float | None = None
    mem_bytes: float | None = None
    oom: bool = False


def observe(ran: Sequence[Ran], *, on_cpu: bool) -> list[Observation]:
    """What the trials so far taught; the noise of a run is pooled over whatever ran more than once.

    Of a GPU's job only the GPU's out-of-memory counts: the host's (loader workers, /dev/shm) says nothing of it.
    """
    noise, per_forward = pooled_noise(ran), backward_per_forward(ran)
    out = []
    for r in ran:
        result = r.result
        if result.role == "probe" and result.probe != "memory":
            continue
        timed = result.role != "probe" and bool(result.images_per_s)
        timed = timed and (result.outcome.measured or result.outcome is Outcome.PRUNED)
        lost, sd = result.outcome is Outcome.OOM, noise
        sized = bool(result.peak_mem_bytes) and result.n_steps > 0 and not lost
        if result.images_per_s and result.ci95_lo and result.ci95_lo > 0:
            sd = math.hypot(sd, min(math.log(result.images_per_s / result.ci95_lo) / 1.96, MOST_WITHIN_SD))
        if result.outcome is Outcome.PRUNED:
            sd = math.hypot(sd, PRUNED_SD)
        seen = Observation(
            params={name: result.effective.get(name, value) for name, value in result.params.items()},
            image_s=1.0 / result.images_per_s if timed and result.images_per_s else None,
            noise_frac=sd,
            wait_frac=result.wait_frac if timed else None,
            exchange_frac=exchange_frac(result, per_forward) if timed else None,
            mem_bytes=float(max(result.peak_mem_bytes)) if sized else None,
            oom=lost and (on_cpu or "GPU" in (result.error or "")),
        )
        if seen.image_s or seen.mem_bytes or seen.oom:
            out.append(seen)
    return out


def backward_per_forward(ran: Sequence[Ran]) -> float | None:
    """How much longer the backward pass is than the forward, where nothing is exchanged: from the probe `no_sync`."""
    parts = next((r.result.parts_s for r in ran if r.result.probe == "no_sync" and r.result.outcome.measured), {})
    forward, backward = parts.get("forward"), parts.get("backward")
    return backward / forward if forward and backward else None


def exchange_frac(result: TrialResult, per_forward: float | None) -> float | None:
    """Share of the step that the backward pass takes beyond its share of computing: the ranks meet in it.

    None with one rank, or where the parts of the step are unknown.
    """
    forward, backward = result.parts_s.get("forward"), result.parts_s.get("backward")
    if per_forward is None or not forward or not backward:
        return None
    return max(0.0, backward - per_forward * forward) / sum(result.parts_s.values())


def pooled_noise(ran: Sequence[Ran]) -> float:
    """Standard deviation of the log of a run's rate, over configurations that ran more than once."""
    groups: dict[str, list[float]] = {}
    for r in ran:
        if r.result.role != "probe" and r.result.outcome.measured and r.result.images_per_s:
            groups.setdefault(key_of(r.result.params), []).append(math.log(r.result.images_per_s))
    squares = sum((y - fmean(ys)) ** 2 for ys in groups.values() for y in ys)
    df = sum(len(ys) - 1 for ys in groups.values())
    return math.sqrt((squares + PRIOR_DF * NOISE_FRAC**2) / (df + PRIOR_DF))
