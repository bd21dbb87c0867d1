"""Counters of a file system that was made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.machine.activity import SECTOR_BYTES, TICKS_PER_S, Activity, HostCounters

STAT = """cpu  900 0 0 900 0 0 0 0 0 0
cpu0 100 10 20 300 40 5 6 7 50 0
cpu1 200 0 0 100 0 0 0 0 0 0
cpu10 999 0 0 0 0 0 0 0 0 0
intr 12345 0 0
"""
DISKSTATS = """   7       0 loop0 5 0 100 0 5 0 100 0 0 0 0
 259       0 nvme0n1 10 0 2000 9 20 0 400 9 0 0 0 0 0 0 0 0 0
 259       1 nvme0n1p1 10 0 2000 9 20 0 400 9 0 0 0 0 0 0 0 0 0
   8       0 sda 1 0 8 0 1 0 16 0 0 0 0
 253       0 dm-0 10 0 2000 9 20 0 400 9 0 0 0
"""
NET = """Inter-|   Receive                                                |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
    lo: 777 1 0 0 0 0 0 0 777 1 0 0 0 0 0 0
  eth0: 1000 1 0 0 0 0 0 0 20 1 0 0 0 0 0 0
   ib0:500 1 0 0 0 0 0 0 3 1 0 0 0 0 0 0
"""


def handmade_root(root: Path) -> Path:
    files = {
        "proc/stat": STAT,
        "proc/diskstats": DISKSTATS,
        "proc/net/dev": NET,
        "proc/pressure/cpu": "some avg10=1.50 avg60=1.73 avg300=1.83 total=7504208557\nfull avg10=0.00 total=0\n",
        "proc/pressure/io": "some avg10=0.25 avg60=0 avg300=0 total=1\n",
        "proc/pressure/memory": "some avg10=0.00 avg60=0 avg300=0 total=0\n",
        "proc/self/cgroup": "0::/ours/trial\n",
        "sys/fs/cgroup/ours/trial/cpu.stat": "usage_usec 5\nnr_throttled 3\nthrottled_usec 2500000\n",
        "sys/fs/cgroup/ours/cpu.stat": "usage_usec 5\nthrottled_usec 500000\n",
        "sys/fs/cgroup/cpu.stat": "usage_usec 5\n",
        "sys/block/loop0/size": "0",
        "sys/block/dm-0/size": "0",
        "sys/block/nvme0n1/device/model": "fast",
        "sys/block/sda/device/model": "slow",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "dev/shm").mkdir(parents=True)
    return root


def test_one_look(tmp_path: Path) -> None:
    seen = HostCounters(handmade_root(tmp_path), cpus=frozenset({0, 1})).look()
    assert seen.busy_s == pytest.approx((100 + 10 + 20 + 5 + 6 + 7 + 200) / TICKS_PER_S), "cpu10 is not cpu1"
    assert seen.cpus_s == pytest.approx((488 + 300) / TICKS_PER_S), "guests are in user already"
    assert seen.disk_read_bytes == SECTOR_BYTES * 2008, "no partition, no loop, no volume on other disks"
    assert seen.disk_write_bytes == SECTOR_BYTES * 416
    assert (seen.net_rx_bytes, seen.net_tx_bytes) == (1500, 23)
    assert (seen.psi_cpu, seen.psi_io, seen.psi_memory) == (1.5, 0.25, 0.0)
    assert seen.throttled_s == pytest.approx(3.0)
    assert seen.shm_used_bytes is not None


def test_throttling_of_cgroup_v1_counts_nanoseconds(tmp_path: Path) -> None:
    root = handmade_root(tmp_path)
    (root / "proc/self/cgroup").write_text("4:cpu,cpuacct:/job\n1:name=systemd:/\n")
    folder = root / "sys/fs/cgroup/cpu,cpuacct/job"
    folder.mkdir(parents=True)
    (root / "sys/fs/cgroup/cpu").symlink_to("cpu,cpuacct")
    (folder / "cpu.stat").write_text("nr_periods 9\nnr_throttled 2\nthrottled_time 1500000000\n")
    assert HostCounters(root).look().throttled_s == pytest.approx(1.5)


def test_what_is_not_there_is_not_measured(tmp_path: Path) -> None:
    nothing = HostCounters(tmp_path).look()
    assert nothing == Activity(**dict.fromkeys(Activity.__dataclass_fields__))


def test_a_kernel_without_pressure_says_nothing_of_it(tmp_path: Path) -> None:
    root = handmade_root(tmp_path)
    (root / "proc/pressure/cpu").write_text("")
    assert HostCounters(root).look().psi_cpu is None


def test_the_real_one_counts_up() -> None:
    host = HostCounters()
    first, second = host.look(), host.look()
    assert first.busy_s is not None
    assert second.busy_s is not None
    assert 0 < first.busy_s <= second.busy_s
    assert second.cpus_s is not None
    assert second.busy_s < second.cpus_s
