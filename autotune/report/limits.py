"""Which part of the machine limits a trial, and how much faster could it be without that limit? Figures only.

The model. Loader and step work at the same time, joined by a queue: the rate is the smaller of what each of them could
do (a roofline; Williams, Waterman and Patterson, CACM 52(4), 2009). So with L the loader's own rate, C the step's, X
what was measured and w the share of the step spent waiting for data:

- a loader without limits gives C at most: from the probe `compute`, else X / (1 - w), the step without its wait
  (Amdahl, AFIPS 1967);
- a device without limits gives L at most: from the probe `data`; while the step waits, the queue is empty and L is X;
  else what is left when the device's share of the step is taken away, X / (1 - that share) (Amdahl again).

Without loader workers the two take turns, and on a CPU they share the cores: then `alone` is not `together`, and what
one trial cannot tell is said (advice.py). All factors are ceilings, never forecasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final, Literal

from autotune.contract import Machine, TrialResult

WAITS_FRAC: Final = 0.05
"""A step that waits longer for its data than this found the queue empty: it is the loader's turn to be looked at."""
RANKS_FRAC: Final = 0.10
"""Of the step, for the slowest rank or for communication; below that other limits come first."""
NEAR_FRAC: Final = 0.05
"""Probes are known to a few per cent."""
BUSY_FRAC: Final = 0.70
"""A GPU that has work for less of the step than this waits for the host to launch it."""
HOST_FRAC: Final = 0.30
"""Of the step without its wait, in copies and in between: the same, where nobody looked at the GPU."""
CORES_FRAC: Final = 0.85
"""Usable cores that are busier than this are all busy."""
FULL_FRAC: Final = 0.90
"""Memory that is used to more than this has no room for a larger batch."""
ROOM_FRAC: Final = 0.50
"""Memory that is used to less than this has room for twice the batch."""
READS_BYTES_PER_S: Final = 1e6
"""Below this the disk is not read: the dataset lies in memory."""
DEVICE: Final = ("forward", "backward", "optimizer")
"""Parts of a step that a faster device shortens."""

Limit = Literal["loader", "compute", "cores", "communication", "straggler", "host", "memory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Images/s of probes of the same configuration (contract/probes.py); None: not run."""

    data: float | None = None
    compute: float | None = None
    no_sync: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The figures that the verdict is made of; shares are of the step's time."""

    rate: float
    wait: float
    n_workers: int | None
    n_cores: float
    """Usable, of one rank."""
    n_ranks: int
    on_gpu: bool
    rates: Rates
    straggler: float | None
    comm: float | None
    """What the other ranks cost, waiting for them included."""
    busy: float | None
    """Of the GPUs, mean; with work of whatever size."""
    device: float | None
    """Forward, backward, optimizer."""
    host: float | None
    """Copies and all between the parts, of the step without its wait."""
    cpu: float | None
    mem: float | None
    disk: float | None
    """Bytes/s read."""
    cached: bool

    @property
    def step_rate(self) -> float:
        """C: what the step could do with a loader that never lets it wait."""
        own = self.rates.compute if self.rates.compute else self.rate / max(1e-3, 1 - self.wait)
        return max(self.rate, own)

    @property
    def takes_turns(self) -> bool:
        """Without loader workers the loader works in the training process, before each step."""
        return self.n_workers == 0


def look(result: TrialResult, machine: Machine, gpus: Sequence[str], n_ranks: int, rates: Rates) -> Seen:
    """The figures of one trial that has a throughput; arguments as those of advice.advise."""
    rate, wait, parts, now = result.images_per_s or 0.0, result.wait_frac or 0.0, result.parts_s, result.meanwhile
    total_s = sum(parts.values())
    utils = [g.util_frac for g in now.gpus if g.util_frac is not None] if now else []
    mems = [g.mem_bytes for g in machine.gpus if g.uuid in gpus]
    have = min(mems) if mems else machine.ram_bytes // n_ranks
    used = max(result.peak_mem_bytes, default=None)
    if now and mems and (peaks := [g.mem_peak_bytes for g in now.gpus if g.mem_peak_bytes is not None]):
        used = max(peaks)  # of the whole device: the context and NCCL's buffers are not torch's
    workers = result.effective.get("workers", result.params.get("workers"))
    worked_s = total_s - parts.get("wait", 0.0)
    return Seen(
        rate=rate,
        wait=wait,
        n_workers=None if workers is None else int(workers),
        n_cores=machine.n_cores / n_ranks,
        n_ranks=n_ranks,
        on_gpu=bool(gpus),
        rates=rates,
        straggler=result.straggler_frac,
        comm=max(0.0, 1 - rate / rates.no_sync) if rates.no_sync else None,
        busy=fmean(utils) if utils else None,
        device=sum(parts.get(p, 0.0) for p in DEVICE) / total_s if total_s else None,
        host=(parts.get("prepare", 0.0) + parts.get("rest", 0.0)) / worked_s if worked_s > 0 else None,
        cpu=now.cpu_frac if now else None,
        mem=None if used is None or not have else used / have,
        disk=now.disk_read_bytes_per_s if now else None,
        cached=str(result.effective.get("cache", result.params.get("cache"))) == "ram",
    )


def limit_of(s: Seen) -> Limit:
    """Which limit comes first; the order is that of a step: data, the other ranks, the host, the device."""
    if s.wait >= WAITS_FRAC and (s.on_gpu or not s.takes_turns or s.wait > 0.5):
        alone = s.rates.data is not None and s.rates.data > (1 + NEAR_FRAC) * s.rate and s.rates.compute is not None
        # On a GPU each alone must be able to do more than both together: else it is simply the slower one.
        shared = alone if s.on_gpu else not s.takes_turns
        return "cores" if shared and s.cpu is not None and s.cpu >= CORES_FRAC else "loader"
    others = (s.comm or 0.0) - (s.straggler or 0.0)
    if max(s.straggler or 0.0, others) >= RANKS_FRAC:
        return "straggler" if (s.straggler or 0.0) >= others else "communication"
    if s.on_gpu:
        idle = s.busy / max(1e-3, 1 - s.wait) < BUSY_FRAC if s.busy is not None else (s.host or 0.0) >= HOST_FRAC
        if idle:
            return "memory" if (s.mem or 0.0) >= FULL_FRAC else "host"
    return "compute"


def most_of(s: Seen, limit: Limit) -> float | None:
    """Times as fast at most without this limit; None: it cannot be told."""
    if limit == "loader":
        return loader_most(s)
    if limit == "straggler" and s.straggler is not None:
        return 1 / (1 - s.straggler)
    if limit == "communication" and s.rates.no_sync:
        return s.rates.no_sync / s.rate
    if limit in ("host", "memory") and s.busy:
        return 1 / s.busy
    return device_most(s) if limit == "compute" else None


def loader_most(s: Seen) -> float | None:
    """With a loader that takes no time: C / X. On a CPU it would free cores as well, and only the probe knows."""
    return s.step_rate / s.rate if s.on_gpu or s.takes_turns or s.rates.compute else None


def device_most(s: Seen) -> float | None:
    """With a device that takes no time: the least of the bounds that are known, L / X and Amdahl's."""
    bounds = [max(1.0, s.rates.data / s.rate)] if s.rates.data else []
    if s.takes_turns and s.wait > 0:
        bounds.append(1 / s.wait)
    elif s.on_gpu and s.wait >= WAITS_FRAC:
        bounds.append(1.0)  # the queue was empty: the loader runs as fast as it can
    if s.on_gpu:
        bounds += [1 / (1 - share) for share in (s.device, s.busy) if share is not None and share < 1]
    return min(bounds, default=None)
