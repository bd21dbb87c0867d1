"""What every Host promises, the real one and the fake."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import psutil
import pytest

from autotune.machine.host import RLIMITS, Host
from tests.machine.fakes import fabricate


@pytest.fixture(params=["real", "fake"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    return Host() if request.param == "real" else fabricate(tmp_path)


def test_files_are_read_and_stripped(host: Host) -> None:
    text = host.read("proc/meminfo")
    assert text is not None
    assert text.startswith("MemTotal:")
    assert text == text.strip()
    assert host.read("proc/no such file") is None
    assert host.read("proc") is None


def test_names_in_a_folder_are_sorted(host: Host) -> None:
    names = host.names("proc")
    assert names is not None
    assert "meminfo" in names
    assert list(names) == sorted(names)
    assert host.names("proc/meminfo") is None
    assert host.names("no such folder") is None


def test_space_of_a_file_system(host: Host) -> None:
    space = host.space("/dev/shm")
    assert space is not None
    assert 0 <= space.free_bytes <= space.total_bytes
    assert space.free_inodes is None or space.free_inodes > 0
    assert host.space(Path("/tmp")) is not None
    assert host.space("/no such folder") is None


def test_who_may_write_where(host: Host) -> None:
    assert host.writable("/tmp") is True
    assert host.writable("/no such folder") is False


def test_limits_are_counts_or_none(host: Host) -> None:
    for name in RLIMITS:
        limit = host.rlimit(name)
        assert limit is None or limit > 0


def test_cores(host: Host) -> None:
    assert 1 <= host.n_affinity() <= host.n_cpus()


def test_commands_and_distributions(host: Host) -> None:
    assert host.which("no-such-command") is None
    assert host.version("no-such-distribution") is None
    assert host.version("torch")


def test_the_clock_has_an_error_or_none(host: Host) -> None:
    error_s = host.clock_error_s()
    assert error_s is None or error_s >= 0


def test_the_real_one_agrees_with_others() -> None:
    host = Host()
    assert host.n_cpus() == os.cpu_count()
    space = host.space("/")
    assert space is not None
    assert space.total_bytes == shutil.disk_usage("/").total
    assert f"MemTotal: {psutil.virtual_memory().total // 1024:>14} kB" in (host.read("proc/meminfo") or "")
    assert host.which("sh") == shutil.which("sh")
