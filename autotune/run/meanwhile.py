"""What did the machine do in the measured window, what energy did it take, and can the window be trusted?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Final, Literal

from autotune.contract import HOST_COLUMNS, GpuMeanwhile, Meanwhile, Outcome, RankRecord
from autotune.machine.gpu_activity import GpuActivity
from autotune.machine.nvml import SLOWED_BY
from autotune.run.outcome import Judgement
from autotune.run.sample import Row, Samples

LEAST_FRAC: Final = 0.5
"""Looks that span a smaller share of the window than this say nothing about its energy."""
SLOWED_FRAC: Final = 0.01
"""Of the samples: a window whose clock was lowered in more of them is void (KNOBS 4, 9)."""
CAPPED: Final = 0x4
"""nvmlClocksEventReasonSwPowerCap: a full load's ordinary limit."""
SLOWED: Final = sum(SLOWED_BY)
COOLER: Final = "cooling or power is the limit here: nvidia-smi -q -d PERFORMANCE names it"
ALONE: Final = "two at once measure neither: end the other one, or choose another GPU with --gpus"


@dataclass(frozen=True, slots=True)
class Power:
    """Mean power of all GPUs over the window."""

    watts: float
    source: Literal["counter", "power"]
    """`power`: of at least one of them it is integrated from its power readings."""


def window_of(samples: Samples, record: RankRecord) -> tuple[float, float] | None:
    """Seconds, as in Row, of a rank's measured window; None: it has none, or its seconds are simulated."""
    if record.began_s is None or not record.measured_from:
        return None
    began_s = record.began_s - samples.began_s
    return began_s + record.steps.end_s[record.measured_from - 1], began_s + record.steps.end_s[-1]


def meanwhile(samples: Samples, window: tuple[float, float]) -> Meanwhile | None:
    """The summary of the rows that lie in the window; None: there are none."""
    rows = _inside(samples, window)
    if not rows:
        return None
    means = {name: _mean(row.host[i] for row in rows) for i, name in enumerate(HOST_COLUMNS[2:])}
    rx, tx = means["net_rx_bytes_per_s"], means["net_tx_bytes_per_s"]
    power = power_of(samples, window)
    return Meanwhile(
        n_samples=len(rows),
        gpus=tuple(_gpu(uuid, [row.gpus[i] for row in rows]) for i, uuid in enumerate(samples.gpus)),
        cpu_frac=means["cpu_frac"],
        tree_cores=means["tree_cores"],
        rss_peak_bytes=_peak(row.host[_host("tree_rss_bytes")] for row in rows),
        shm_peak_bytes=_peak(row.host[_host("shm_used_bytes")] for row in rows),
        disk_read_bytes_per_s=means["disk_read_bytes_per_s"],
        disk_write_bytes_per_s=means["disk_write_bytes_per_s"],
        net_bytes_per_s=None if rx is None or tx is None else rx + tx,
        psi_cpu=means["psi_cpu"],
        psi_io=means["psi_io"],
        psi_memory=means["psi_memory"],
        throttled_frac=means["throttled_frac"],
        energy_from=power.source if power else None,
        voided_by=_slowed(samples.gpus, rows)
        or next((who for t_s, who in samples.strangers if _in(t_s, window)), None),
    )


def judged(judgement: Judgement, seen: Meanwhile | None) -> Judgement:
    """A window that is void gives no good number."""
    if judgement.outcome is not Outcome.OK or seen is None or seen.voided_by is None:
        return judgement
    hint = ALONE if seen.voided_by.startswith("process") else COOLER
    return Judgement(Outcome.UNSTABLE, f"{seen.voided_by} while it was measured", hint)


def power_of(samples: Samples, window: tuple[float, float]) -> Power | None:
    """Mean power of all GPUs by the looks that lie inside the window.

    Of each GPU, its energy counter's difference over the seconds between; of one that does not count, the integral of
    its power readings by the trapezoidal rule. So neither the start-up nor the idle seconds after the last step count.
    The driver renews the counter every 20 to 100 ms (KNOBS 4): with a look every quarter of a second, in a window of
    10 s, two stale counters are at most 1 % off, and what lies outside the looks, up to half a second, is taken to
    have the mean power of the rest.

    Returns:
        None without GPUs, where one of them says neither, or where the looks span too little of the window.
    """
    rows, watts, sources = _inside(samples, window), 0.0, set()
    for i in range(len(samples.gpus)):
        counted = _mean_rate([(row.t_s, row.gpus[i].energy_j) for row in rows], window)
        integrated = _mean_power([(row.t_s, row.gpus[i].power_w) for row in rows], window)
        mean_w = integrated if counted is None else counted
        if mean_w is None:
            return None
        watts += mean_w
        sources.add("power" if counted is None else "counter")
    return Power(watts, "power" if "power" in sources else "counter") if sources else None


def _known(points: Iterable[tuple[float, float | None]], window: tuple[float, float]) -> list[tuple[float, float]]:
    """The points that were read, when they span enough of the window."""
    known = [(t, x) for t, x in points if x is not None]
    spans = len(known) > 1 and known[-1][0] - known[0][0] >= LEAST_FRAC * (window[1] - window[0])
    return known if spans else []


def _mean_rate(points: Iterable[tuple[float, float | None]], window: tuple[float, float]) -> float | None:
    known = _known(points, window)
    return (known[-1][1] - known[0][1]) / (known[-1][0] - known[0][0]) if known else None


def _mean_power(points: Iterable[tuple[float, float | None]], window: tuple[float, float]) -> float | None:
    known = _known(points, window)
    if not known:
        return None
    joules = sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in pairwise(known))
    return joules / (known[-1][0] - known[0][0])


def _gpu(uuid: str, looks: Sequence[GpuActivity]) -> GpuMeanwhile:
    return GpuMeanwhile(
        uuid=uuid,
        util_frac=_mean(g.util_frac for g in looks),
        mem_peak_bytes=_peak(g.mem_bytes for g in looks),
        power_w=_mean(g.power_w for g in looks),
        sm_hz=_mean(g.sm_hz for g in looks),
        temp_peak_c=max((g.temp_c for g in looks if g.temp_c is not None), default=None),
        slowed_frac=_share(looks, SLOWED),
        capped_frac=_share(looks, CAPPED),
    )


def _share(looks: Sequence[GpuActivity], bits: int) -> float | None:
    """Of the samples in which one of these is a reason for the clock that it has."""
    return _mean(None if g.reasons is None else float(bool(g.reasons & bits)) for g in looks)


def _slowed(gpus: Sequence[str], rows: Sequence[Row]) -> str | None:
    """What lowered a GPU's clock in more than SLOWED_FRAC of the samples."""
    for i, gpu in enumerate(gpus):
        looks = [row.gpus[i] for row in rows]
        share = _share(looks, SLOWED)
        if share is not None and share > SLOWED_FRAC:
            all_bits = [g.reasons or 0 for g in looks]
            cause = next(text for bit, text in SLOWED_BY.items() if any(bits & bit for bits in all_bits))
            return f"GPU {gpu} was slowed down by {cause} in {share:.0%} of the samples"
    return None


def _inside(samples: Samples, window: tuple[float, float]) -> list[Row]:
    return [row for row in samples.rows if _in(row.t_s, window)]


def _in(t_s: float, window: tuple[float, float]) -> bool:
    return window[0] <= t_s <= window[1]


def _host(name: str) -> int:
    return HOST_COLUMNS.index(name) - 2


def _mean(values: Iterable[float | None]) -> float | None:
    known = [x for x in values if x is not None]
    return fmean(known) if known else None


def _peak(values: Iterable[float | None]) -> int | None:
    known = [int(x) for x in values if x is not None]
    return max(known, default=None)
