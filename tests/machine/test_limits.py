from __future__ import annotations

import pytest

from autotune.machine.limits import (
    cgroup_cores,
    cgroup_memory_bytes,
    cgroup_memory_left_bytes,
    cgroup_pids_left,
    throttled_frac,
)


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


GIB = 1 << 30


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"proc/self/cgroup": "0::/"}, None),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": "max", "sys/fs/cgroup/memory.current": "5"}, None),
        (  # of 3 GiB in use 2 are files, of which shared memory stays: 8 - 3 + 1
            {
                "proc/self/cgroup": "0::/",
                "sys/fs/cgroup/memory.max": str(8 * GIB),
                "sys/fs/cgroup/memory.current": str(3 * GIB),
                "sys/fs/cgroup/memory.stat": f"anon {GIB}\nfile {2 * GIB}\nshmem {GIB}",
            },
            6 * GIB,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/job",
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": str(4 * GIB),
                "sys/fs/cgroup/memory/job/memory.usage_in_bytes": str(3 * GIB),
                "sys/fs/cgroup/memory/job/memory.stat": f"cache 0\ntotal_cache {GIB}\ntotal_shmem 0",
            },
            2 * GIB,
        ),
    ],
)
def test_memory_left(tmp_path, files, left):
    assert cgroup_memory_left_bytes(_tree(tmp_path, files)) == left


def test_processes_left(tmp_path):
    assert cgroup_pids_left(tmp_path) is None
    files = {"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/pids.max": "max", "sys/fs/cgroup/a/pids.current": "3"}
    assert cgroup_pids_left(_tree(tmp_path, files)) is None
    files = {"sys/fs/cgroup/pids.max": "512", "sys/fs/cgroup/pids.current": "12"}
    assert cgroup_pids_left(_tree(tmp_path, files)) == 500


def test_throttling(tmp_path):
    assert throttled_frac(tmp_path) is None
    files = {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.stat": "usage_usec 5\nnr_periods 0\nnr_throttled 0"}
    assert throttled_frac(_tree(tmp_path, files)) is None
    files = {"sys/fs/cgroup/cpu.stat": "nr_periods 400\nnr_throttled 100\nthrottled_usec 7"}
    assert throttled_frac(_tree(tmp_path, files)) == 0.25
