"""How many cores and how much memory does this container leave us, and has it run out? (cgroup v1 and v2)"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from autotune.machine.host import Host


def cgroup_cores(root: Path = Path("/")) -> float | None:
    """The CPU quota in cores, None where there is none.

    Args:
        root: of the file system, for tests.
    """
    quotas = []
    for folder in _folders(root, "cpu"):
        words = _read(folder / "cpu.max").split()  # v2: "150000 100000" or "max 100000"
        if not words:
            words = [_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")]  # v1: -1 is no quota
        if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal() and int(words[1]):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def cgroup_memory_bytes(root: Path = Path("/")) -> int | None:
    """The memory limit, None where there is none (v2 says "max", v1 a number near 2^63).

    Args:
        root: of the file system, for tests.
    """
    limits = []
    for folder in _folders(root, "memory"):
        text = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
        if text.isdecimal() and int(text) < 2**60:
            limits.append(int(text))
    return min(limits, default=None)


def cgroup_memory_left_bytes(root: Path = Path("/")) -> int | None:
    """What the tightest of our groups still gives: its limit less what is used and cannot be dropped; None: no limit.

    Files in the page cache count as used but go when memory is needed; shared memory counts as a file and stays.

    Args:
        root: of the file system, for tests.
    """
    left = []
    for folder in _folders(root, "memory"):
        limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
        used = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")
        if limit.isdecimal() and int(limit) < 2**60 and used.isdecimal():
            stat = _pairs(_read(folder / "memory.stat"))
            files = stat.get("file", stat.get("total_cache", 0)) - stat.get("shmem", stat.get("total_shmem", 0))
            left.append(int(limit) - int(used) + max(files, 0))
    return max(0, min(left)) if left else None


def cgroup_pids_left(root: Path = Path("/")) -> int | None:
    """How many processes and threads our groups still allow; None: no limit.

    Args:
        root: of the file system, for tests.
    """
    left = []
    for folder in _folders(root, "pids"):
        most, now = _read(folder / "pids.max"), _read(folder / "pids.current")
        if most.isdecimal() and now.isdecimal():
            left.append(int(most) - int(now))
    return min(left, default=None)


def throttled_frac(root: Path = Path("/")) -> float | None:
    """Share of the scheduler's periods so far in which our group had used up its quota; None: it has none.

    Args:
        root: of the file system, for tests.
    """
    shares = []
    for folder in _folders(root, "cpu"):
        stat = _pairs(_read(folder / "cpu.stat"))
        if stat.get("nr_periods"):
            shares.append(stat.get("nr_throttled", 0) / stat["nr_periods"])
    return max(shares, default=None)


def meminfo(host: Host) -> dict[str, int]:
    """/proc/meminfo in bytes: MemTotal, MemAvailable, SwapTotal, ...; empty where it cannot be read."""
    rows = re.findall(r"^(\w+):\s+(\d+) kB$", host.read("proc/meminfo") or "", re.MULTILINE)
    return {name: int(kib) * 1024 for name, kib in rows}


def limits_show(controller: str, root: Path = Path("/")) -> bool:
    """Whether a limit of our groups would be seen: their tree is mounted, and what stands in it can be read.

    Args:
        controller: cpu or memory.
        root: of the file system, for tests.
    """
    # Each group has this file, and the empty folder in which nothing is mounted has not.
    there = [folder for folder in _folders(root, controller) if (folder / "cgroup.procs").exists()]
    files = [folder / name for folder in there for name in _LIMITS[controller] if (folder / name).exists()]
    return bool(there) and all(map(_read, files))


_LIMITS: Final = {
    "cpu": ("cpu.max", "cpu.cfs_quota_us"),
    "memory": ("memory.max", "memory.limit_in_bytes"),
}
"""Controller -> where its limit stands, in v2 and in v1."""


def oom_kills(root: Path = Path("/")) -> int:
    """How many processes the kernel has killed so far because memory ran out.

    Of our own cgroup where it counts them (v2 memory.events with all groups below, v1 memory.oom_control; both also
    count the victims of a machine-wide shortage), else of the whole machine (/proc/vmstat). Two readings tell whether
    a process that got SIGKILL in between may have been one of them.

    Args:
        root: of the file system, for tests.
    """
    files = [folder / name for folder in _folders(root, "memory") for name in ("memory.events", "memory.oom_control")]
    for path in (*files, root / "proc/vmstat"):
        for line in _read(path).splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill" and value.isdecimal():
                return int(value)
    return 0


def cpu_stat_files(root: Path = Path("/")) -> tuple[Path, ...]:
    """The files that count how long a CPU quota held us back: of our own cgroup and of those above it.

    Args:
        root: of the file system, for tests.
    """
    return tuple(path for folder in _folders(root, "cpu") if (path := folder / "cpu.stat").is_file())


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """This process's groups of a controller and their parents, which limit it as well."""
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = mount if not controllers else mount / controller  # v2 has one tree and names no controllers
        folder = base / path.lstrip("/")
        yield folder  # not there when the container sees its own group as the root: then the parents are
        yield from (p for p in folder.parents if p == base or base in p.parents)


def _pairs(text: str) -> dict[str, int]:
    """`name number` lines."""
    rows = (line.split() for line in text.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdecimal()}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
