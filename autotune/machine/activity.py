"""How busy is this machine? Counters of /proc and of our cgroup, read in a tenth of a millisecond; none of them raises."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from autotune.machine.limits import cpu_stat_files

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
SECTOR_BYTES: Final = 512
"""Of /proc/diskstats, whatever the disk's own sectors are (Documentation/admin-guide/iostats)."""
MOST_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """One look. Counters count since boot, the rest is of now; None where it cannot be read."""

    busy_s: float | None
    """CPU seconds that somebody computed on the CPUs that we may use, the hypervisor's share of them included."""
    cpus_s: float | None
    """CPU seconds that there were on them."""
    shm_used_bytes: int | None
    disk_read_bytes: int | None
    """Of whole disks: no partition, no loop, no RAM disk, no volume that lies on other disks."""
    disk_write_bytes: int | None
    net_rx_bytes: int | None
    """Of all interfaces but lo."""
    net_tx_bytes: int | None
    psi_cpu: float | None
    """Percent of the last 10 s in which some task waited for it (avg10 of `some`)."""
    psi_io: float | None
    psi_memory: float | None
    throttled_s: float | None
    """For which the CPU quota of our cgroups held some CPU back; of several CPUs at once it is the sum."""


class HostCounters:
    """Looks at the counters; what does not change while a trial runs is found once.

    Args:
        root: of the file system, for tests.
        cpus: numbers of the CPUs that we may use; None: of this process.
    """

    def __init__(self, root: Path = Path("/"), cpus: frozenset[int] | None = None) -> None:
        cpus = frozenset(os.sched_getaffinity(0)) if cpus is None else cpus
        self._cpus = {b"cpu%d" % n for n in cpus}
        self._stat, self._diskstats, self._net = (
            str(root / name) for name in ("proc/stat", "proc/diskstats", "proc/net/dev")
        )
        self._pressure = [str(root / "proc/pressure" / name) for name in ("cpu", "io", "memory")]
        self._shm = str(root / "dev/shm")
        # What the kernel made itself (loop, ram, zram, dm, md) has no device of its own.
        self._disks = {os.fsencode(p.parent.name) for p in (root / "sys/block").glob("*/device")}
        self._cpu_stats = [str(path) for path in cpu_stat_files(root)]

    def look(self) -> Activity:
        """Read them all now."""
        busy_s, cpus_s = self._read_cpus()
        disk_read, disk_write = self._read_disks()
        net_rx, net_tx = self._read_net()
        psi_cpu, psi_io, psi_memory = map(_read_pressure, self._pressure)
        return Activity(
            busy_s=busy_s,
            cpus_s=cpus_s,
            shm_used_bytes=self._read_shm(),
            disk_read_bytes=disk_read,
            disk_write_bytes=disk_write,
            net_rx_bytes=net_rx,
            net_tx_bytes=net_tx,
            psi_cpu=psi_cpu,
            psi_io=psi_io,
            psi_memory=psi_memory,
            throttled_s=self._read_throttled(),
        )

    def _read_cpus(self) -> tuple[float | None, float | None]:
        """Lines `cpuN user nice system idle iowait irq softirq steal guest guest_nice`; guests are users, too."""
        busy = total = 0
        for line in read_bytes(self._stat).split(b"\n"):
            if not line.startswith(b"cpu"):
                break  # what follows is long and of no use
            name, *numbers = line.split()
            if name in self._cpus:
                ticks = [int(n) for n in numbers[:8]]
                total += sum(ticks)
                busy += sum(ticks) - ticks[3] - ticks[4]
        return (busy / TICKS_PER_S, total / TICKS_PER_S) if total else (None, None)

    def _read_shm(self) -> int | None:
        try:
            s = os.statvfs(self._shm)
        except OSError:
            return None
        return s.f_frsize * (s.f_blocks - s.f_bfree)

    def _read_disks(self) -> tuple[int | None, int | None]:
        """Lines `major minor name reads merged sectors ms writes merged sectors ...`."""
        found = [w for line in read_bytes(self._diskstats).split(b"\n") if len(w := line.split()) > 9]
        mine = [(int(w[5]), int(w[9])) for w in found if w[2] in self._disks]
        if not mine:
            return None, None
        return SECTOR_BYTES * sum(r for r, _ in mine), SECTOR_BYTES * sum(w for _, w in mine)

    def _read_net(self) -> tuple[int | None, int | None]:
        """Lines `name: rx_bytes and seven more, tx_bytes and seven more` after two lines of heading."""
        rows = [line.partition(b":") for line in read_bytes(self._net).split(b"\n")[2:]]
        mine = [words for name, _, text in rows if name.strip() != b"lo" and len(words := text.split()) > 8]
        return (sum(int(w[0]) for w in mine), sum(int(w[8]) for w in mine)) if mine else (None, None)

    def _read_throttled(self) -> float | None:
        """`throttled_usec` (v2) or `throttled_time` in nanoseconds (v1) of every group that has a quota above us."""
        unit_s = {b"throttled_usec": 1e-6, b"throttled_time": 1e-9}
        lines = [line.split() for path in self._cpu_stats for line in read_bytes(path).split(b"\n")]
        found = [int(words[1]) * unit_s[words[0]] for words in lines if len(words) == 2 and words[0] in unit_s]
        return sum(found) if found else None


def _read_pressure(path: str) -> float | None:
    """`some avg10=0.03 avg60=1.73 ...` -> 0.03."""
    words = read_bytes(path).split(b"\n", 1)[0].split()
    if len(words) < 2 or words[0] != b"some":
        return None
    return float(words[1].removeprefix(b"avg10="))


def read_bytes(path: str) -> bytes:
    """A small file of the kernel's; b"" where it cannot be read. Three system calls: io's own reader makes eight."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            parts = []
            while part := os.read(fd, MOST_BYTES):
                parts.append(part)
            return b"".join(parts)
        finally:
            os.close(fd)
    return b""
