"""A host that answers from a folder and from what it is given; it passes the conformance tests of the real one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autotune.machine.host import RLIMITS, Host, Space

SPACES = {
    "/": Space(total_bytes=500 << 30, free_bytes=200 << 30, free_inodes=10_000_000),
    "/dev/shm": Space(total_bytes=64 << 30, free_bytes=64 << 30, free_inodes=1_000_000),
}
LIMITS = {"nofile": 65536, "memlock": 8 << 20, "stack": 8 << 20, "nproc": 100_000}
DISTRIBUTIONS = {
    "torch": "2.15.0",
    "torchvision": "0.29.2",
    "ultralytics": "8.4.190",
    "cloudpickle": "3.1.2",
    "triton": "3.9.0",
    "nvidia-cudnn-cu13": "9.26.0.51",
    "nvidia-nccl-cu13": "2.30.7",
}
HEALTHY = {
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: Synthetic CPU @ 3 GHz\nflags\t\t: fpu sse\n",
    "proc/meminfo": (
        "MemTotal:       134217728 kB\nMemAvailable:   125829120 kB\n"
        "SwapTotal:       8388608 kB\nSwapFree:        8388608 kB\n"
    ),
    "proc/vmstat": "pswpin 0\npswpout 0\noom_kill 0\n",
    "proc/modules": "nvidia_uvm 4096 0 - Live 0x0\n",
    "proc/net/route": "Iface\tDestination\tGateway\neth0\t00000000\t0100000A\n",
    "proc/pressure/cpu": "some avg10=0.50 avg60=0.10 avg300=0.00 total=1\n",
    "proc/pressure/io": "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
    "proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
    "proc/self/cgroup": "0::/\n",
    "proc/self/status": "Name:\tpython\nCpus_allowed_list:\t0-15\n",
    "proc/self/mountinfo": (
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        "23 22 0:21 / /proc rw - proc proc rw\n"
        "24 22 0:22 / /dev/shm rw - tmpfs tmpfs rw\n"
    ),
    "proc/sys/kernel/osrelease": "6.8.0-synthetic\n",
    "proc/sys/kernel/randomize_va_space": "2\n",
    "proc/1/comm": "systemd\n",
    "proc/1/stat": "1 (systemd) S 0 1 1 0\n",
    "proc/77/stat": "77 (python (3)) R 1 77 77 0\n",
    "sys/fs/cgroup/cgroup.procs": "1\n",
    "sys/dev/block/8:1/queue/rotational": "0\n",
    "sys/devices/system/node/node0/cpulist": "0-15\n",
    "sys/devices/system/node/online": "0\n",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    "sys/class/net/eth0/operstate": "up\n",
    "sys/class/net/eth0/speed": "25000\n",
    "sys/class/net/eth0/mtu": "9000\n",
    "sys/class/net/lo/operstate": "unknown\n",
    "usr/share/fonts/truetype/Arial.ttf": "",
    "dev/shm/.keep": "",
    "tmp/.keep": "",
    "data/images/0.jpg": "not looked at",
    "results/.keep": "",
}
"""Files of a machine that no check has anything to say against; a header of Python's is added by `fabricate`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeHost(Host):
    """Host with its calls to the kernel answered."""

    env: Mapping[str, str] = field(default_factory=dict)
    nvml: Any = field(default_factory=lambda: object())
    """Not pynvml: a machine that has GPUs lends none to these tests."""
    spaces: Mapping[str, Space | None] = field(default_factory=lambda: SPACES)
    """Mount point -> its space; None: it does not answer."""
    limits: Mapping[str, int | None] = field(default_factory=lambda: LIMITS)
    read_only: frozenset[str] = frozenset()
    affinity: int = 16
    cpus: int = 16
    commands: Mapping[str, str] = field(
        default_factory=lambda: {"gcc": "/usr/bin/gcc", "g++": "/usr/bin/g++", "numactl": "/usr/bin/numactl"}
    )
    distributions: Mapping[str, str] = field(default_factory=lambda: DISTRIBUTIONS)
    clock_s: float | None = 0.001

    def space(self, path: str | Path) -> Space | None:
        """That of the longest mount point above the path."""
        if not (self.root / str(path).lstrip("/")).exists():
            return None
        points = [p for p in self.spaces if Path(path).is_relative_to(p)]
        return self.spaces[max(points, key=len)] if points else None

    def writable(self, path: str | Path) -> bool:
        """Where it is and was not declared read-only: root, who may run these tests, writes anywhere."""
        return (self.root / str(path).lstrip("/")).is_dir() and str(path) not in self.read_only

    def rlimit(self, name: str) -> int | None:
        """As given."""
        assert name in RLIMITS
        return self.limits[name]

    def n_cpus(self) -> int:
        """As given."""
        return self.cpus

    def n_affinity(self) -> int:
        """As given."""
        return self.affinity

    def which(self, command: str) -> str | None:
        """As given."""
        return self.commands.get(command)

    def version(self, distribution: str) -> str | None:
        """As given."""
        return self.distributions.get(distribution)

    def clock_error_s(self) -> float | None:
        """As given."""
        return self.clock_s


def fabricate(root: Path, files: Mapping[str, str | None] | None = None, **given: Any) -> FakeHost:
    """A healthy machine below `root`, but for what is given.

    Args:
        root: an empty folder.
        files: path -> other text; None: not there. A path that ends in `/` is a folder with all below it.
        given: fields of FakeHost.
    """
    import sysconfig

    texts: dict[str, str | None] = {**HEALTHY, f"{sysconfig.get_paths()['include']}/Python.h".lstrip("/"): ""}
    for path, text in (files or {}).items():
        gone = [p for p in texts if path.endswith("/") and p.startswith(path)]
        texts |= dict.fromkeys(gone) if gone else {path: text}
    for path, text in texts.items():
        if text is not None:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
    return FakeHost(root=root, **given)


UNSET_CLOCK = math.inf
