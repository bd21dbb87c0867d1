from __future__ import annotations

import pytest

from autotune.machine.limits import cgroup_cores, cgroup_memory_bytes


def _tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "cores", "memory"),
    [
        ({}, None, None),
        ({"proc/self/cgroup": "0::/"}, None, None),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/b/cpu.max": "150000 100000",
                "sys/fs/cgroup/a/b/memory.max": "max",
                "sys/fs/cgroup/a/cpu.max": "max 100000",
                "sys/fs/cgroup/a/memory.max": "1073741824",
            },
            1.5,
            1 << 30,
        ),
        (  # the tightest of the parents rules
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/b/cpu.max": "800000 100000",
                "sys/fs/cgroup/a/cpu.max": "400000 100000",
            },
            4.0,
            None,
        ),
        (  # a container that sees its own group as the root, under the host's name
            {"proc/self/cgroup": "0::/docker/1234", "sys/fs/cgroup/cpu.max": "200000 100000"},
            2.0,
            None,
        ),
        (  # v1
            {
                "proc/self/cgroup": "4:memory:/job\n2:cpu,cpuacct:/job\n3:cpuset:/\n0::/",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "2147483648",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            },
            3.0,
            2 << 30,
        ),
        (  # v1 without limits
            {
                "proc/self/cgroup": "2:cpu:/\n4:memory:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            },
            None,
            None,
        ),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "garbage"}, None, None),
    ],
)
def test_limits(tmp_path, files, cores, memory):
    root = _tree(tmp_path, files)
    assert cgroup_cores(root) == cores
    assert cgroup_memory_bytes(root) == memory
