"""What is left in shared memory goes, what anybody uses stays: a folder in place of /dev/shm, and the real one."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune.run.cleanup import list_shared_memory, remove_shared_memory
from autotune.run.launch import TAG
from autotune.run.supervise import find_tagged, kill_tree


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_our_kinds_of_new_files_go(tmp_path: Path) -> None:
    old = f"torch_{dead_pid()}_1_1"
    (tmp_path / old).write_bytes(b"x")
    before = list_shared_memory(tmp_path)
    ours = {f"torch_{dead_pid()}_2_2", "sem.mp-abcd", "psm_12ab", "nccl-AbCdEf"}
    others = {"PostgreSQL.12", "my_torch_1_1", "torch_notes.txt", f"torch_{os.getpid()}_3_3"}
    for name in ours | others:
        (tmp_path / name).write_bytes(b"x")
    assert set(remove_shared_memory(before, tmp_path)) == ours
    assert {p.name for p in tmp_path.iterdir()} == others | {old}


@pytest.fixture
def shm() -> Iterator[Path]:
    """A folder on the file system that shared memory has: others may show other devices in /proc/PID/maps."""
    with tempfile.TemporaryDirectory(prefix="autotune-test-", dir="/dev/shm") as folder:
        yield Path(folder)


def test_what_a_process_has_mapped_or_open_stays(shm: Path) -> None:
    for name in ("psm_mapped", "psm_open", "psm_left"):
        (shm / name).write_bytes(bytes(4096))
    with (shm / "psm_mapped").open("r+b") as f:
        mapped = mmap.mmap(f.fileno(), 4096)
    with (shm / "psm_open").open("rb"):
        assert remove_shared_memory((), shm) == ["psm_left"]
    mapped.close()
    assert remove_shared_memory((), shm) == ["psm_mapped", "psm_open"]


def test_a_semaphore_of_another_program_stays() -> None:
    """Glibc maps it under a name that it then removes, so only its inode tells that it is in use."""
    body = """
        import multiprocessing, os, sys
        lock = multiprocessing.get_context("spawn").Lock()
        print(lock._semlock.name, flush=True)
        sys.stdin.read()
    """
    before = list_shared_memory()
    argv = [sys.executable, "-c", textwrap.dedent(body)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdin
        name = f"sem.{other.stdout.readline().strip().removeprefix('/')}"
        assert name in list_shared_memory() - before
        assert name not in remove_shared_memory(before)
        assert name in list_shared_memory(), "or its next child could not open it"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's file")
def test_another_users_file_stays(tmp_path: Path) -> None:
    theirs = tmp_path / "psm_theirs"
    theirs.write_bytes(b"x")
    os.chown(theirs, 12345, -1)
    assert remove_shared_memory((), tmp_path) == []
    os.chown(theirs, os.geteuid(), -1)
    assert remove_shared_memory((), tmp_path) == ["psm_theirs"]


def test_no_shared_memory_at_all(tmp_path: Path) -> None:
    assert list_shared_memory(tmp_path / "none") == frozenset()
    assert remove_shared_memory((), tmp_path / "none") == []


def test_a_killed_torch_leaves_a_tensor_and_it_goes(tmp_path: Path) -> None:
    """The strategy file_system, its manager killed too, as kill_tree does: nobody is left to remove the segment."""
    before = list_shared_memory()
    body = """
        import time, torch, torch.multiprocessing as mp
        mp.set_sharing_strategy("file_system")
        t = torch.ones(1 << 16).share_memory_()
        print("up", flush=True)
        time.sleep(600)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(body)],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path), TAG: "cleanup-test"},
        start_new_session=True,
    )
    assert process.stdout
    assert process.stdout.readline() == b"up\n"
    new = {name for name in list_shared_memory() - before if name.startswith(f"torch_{process.pid}_")}
    assert new
    assert not new & set(remove_shared_memory(before)), "its process lives"
    for manager in find_tagged("cleanup-test"):
        if manager.pid != process.pid:
            manager.kill()
    kill_tree(process, "cleanup-test", grace_s=0.0)
    process.communicate()
    assert new <= list_shared_memory(), "else this test shows nothing"
    assert new <= set(remove_shared_memory(before))
    assert not new & list_shared_memory()
