"""What does the kernel say to this process? Every reading that a check may make beside NVML; none of them raises."""

from __future__ import annotations

import importlib.metadata
import os
import resource
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

RLIMITS: Final = {
    "nofile": resource.RLIMIT_NOFILE,
    "memlock": resource.RLIMIT_MEMLOCK,
    "stack": resource.RLIMIT_STACK,
    "nproc": resource.RLIMIT_NPROC,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Of a file system."""

    total_bytes: int
    free_bytes: int
    """For us."""
    free_inodes: int | None = None
    """None: it does not count them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The real one. A fake (tests/machine/fakes.py) answers from a folder and from what it was given."""

    root: Path = Path("/")
    """Of the file system, for tests: /proc, /sys, /etc and /dev are read below it."""
    nvml: Any = None
    """The pynvml module or FakeNvml; None: pynvml, where there is one."""
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def read(self, path: str) -> str | None:
        """Text of a file such as `proc/meminfo` below the root, stripped; None where it cannot be read."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

    def names(self, path: str) -> tuple[str, ...] | None:
        """Names in a folder below the root, sorted; None where it cannot be read."""
        try:
            return tuple(sorted(p.name for p in (self.root / path).iterdir()))
        except OSError:
            return None

    def kernel_log(self) -> str | None:
        """What the kernel has said since it came up, as far as it still holds it; None: not for this user.

        /dev/kmsg gives a record a read, and would wait for the next one after the last.
        """
        try:
            fd = os.open(self.root / "dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        records = []
        while True:
            try:
                record = os.read(fd, 8192)
            except BrokenPipeError:  # overwritten while we read; the next read goes on behind the gap
                continue
            except OSError:  # BlockingIOError: that was the last one
                break
            if not record:
                break
            records.append(record)
        os.close(fd)
        return b"".join(records).decode(errors="replace")

    def space(self, path: str | Path) -> Space | None:
        """Of the file system that holds a folder; None where nobody says."""
        try:
            s = os.statvfs(self.root / str(path).lstrip("/"))
        except OSError:
            return None
        inodes = s.f_favail if s.f_files else None
        return Space(total_bytes=s.f_frsize * s.f_blocks, free_bytes=s.f_frsize * s.f_bavail, free_inodes=inodes)

    def writable(self, path: str | Path) -> bool:
        """Whether this process may make a file in a folder."""
        return os.access(self.root / str(path).lstrip("/"), os.W_OK | os.X_OK)

    def rlimit(self, name: str) -> int | None:
        """Soft limit, one of RLIMITS; None: unlimited."""
        soft, _ = resource.getrlimit(RLIMITS[name])
        return None if soft == resource.RLIM_INFINITY else soft

    def n_cpus(self) -> int:
        """os.cpu_count(): all of the host's, whatever we may use."""
        return os.cpu_count() or 1

    def n_affinity(self) -> int:
        """CPUs that this process may run on."""
        return len(os.sched_getaffinity(0))

    def which(self, command: str) -> str | None:
        """Where a command is on the PATH."""
        return shutil.which(command)

    def version(self, distribution: str) -> str | None:
        """Of an installed distribution; None: not installed."""
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            return None
