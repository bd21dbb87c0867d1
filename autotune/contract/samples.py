"""What did the machine do while a trial ran? Columns of samples.csv, and their summary over the measured window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

HOST_COLUMNS: Final = (
    "t_s",  # since the trial's processes were started
    "measuring",  # 1 where rank 0 was in the measured window
    "cpu_frac",  # of all usable cores, whoever computed
    "tree_cores",  # cores that the trial's own processes kept busy
    "tree_rss_bytes",
    "shm_used_bytes",
    "disk_read_bytes_per_s",
    "disk_write_bytes_per_s",
    "net_rx_bytes_per_s",
    "net_tx_bytes_per_s",
    "psi_cpu",  # avg10 of `some`, percent as the kernel writes it
    "psi_io",
    "psi_memory",
    "throttled_frac",  # of the time since the last row in which the cgroup's CPU quota held us back
)
"""Of samples.csv, a row each 0.2 to 0.5 s; empty where it cannot be read."""

GPU_COLUMNS: Final = (
    "util_frac",
    "mem_bytes",
    "power_w",
    "sm_hz",
    "mem_hz",
    "reasons",  # bits of nvmlDeviceGetCurrentClocksEventReasons
    "temp_c",
    "energy_j",  # of its counter, since the first row
)
"""Then one group a GPU of the trial, in the order of TrialSpec.gpus: `gpu0_util_frac`, ..., `gpu1_util_frac`, ..."""


def sample_columns(n_gpus: int) -> tuple[str, ...]:
    """All columns of samples.csv of a trial on so many GPUs."""
    return (*HOST_COLUMNS, *(f"gpu{i}_{name}" for i in range(n_gpus) for name in GPU_COLUMNS))


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMeanwhile:
    """One GPU over the measured window: means, and peaks where they say so."""

    uuid: str
    util_frac: float | None = None
    mem_peak_bytes: int | None = None
    power_w: float | None = None
    sm_hz: float | None = None
    temp_peak_c: float | None = None
    slowed_frac: float | None = None
    """Share of the samples in which hardware slow-down, heat or the power brake lowered its clock."""
    capped_frac: float | None = None
    """Share of the samples at the software power cap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meanwhile:
    """The machine over the measured window: means, and peaks where they say so."""

    n_samples: int
    gpus: tuple[GpuMeanwhile, ...] = ()
    cpu_frac: float | None = None
    tree_cores: float | None = None
    rss_peak_bytes: int | None = None
    shm_peak_bytes: int | None = None
    disk_read_bytes_per_s: float | None = None
    disk_write_bytes_per_s: float | None = None
    net_bytes_per_s: float | None = None
    """Both ways."""
    psi_cpu: float | None = None
    psi_io: float | None = None
    psi_memory: float | None = None
    throttled_frac: float | None = None
    energy_from: str | None = None
    """`counter`, or `power` where it is integrated from power samples; None: no energy."""
    voided_by: str | None = None
    """Why the window is not to be trusted: a hardware slow-down, or somebody else's process on a GPU."""
