"""Members of a trial in a /proc that was made by hand."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from autotune.machine.activity import TICKS_PER_S
from autotune.machine.process_tree import PAGE_BYTES, ProcessTree


def process(
    root: Path, pid: int, *, ppid: int, session: int = 1, cpu_s: float = 0.0, pages: int = 0, state="S"
) -> None:
    ticks = round(cpu_s * TICKS_PER_S)
    before = f"{pid} (a (bad) name) {state} {ppid} {pid} {session} 0 -1 0 0 0 0 0"
    (root / "proc" / str(pid)).mkdir(parents=True, exist_ok=True)
    (root / "proc" / str(pid) / "stat").write_text(
        f"{before} {ticks // 2} {ticks - ticks // 2} 0 0 20 0 1 0 5 99 {pages} 0\n"
    )


def test_descendants_and_their_sessions_belong_to_it(tmp_path: Path) -> None:
    process(tmp_path, 10, ppid=1, session=10, pages=1)
    process(tmp_path, 13, ppid=12, session=10, pages=2)
    process(tmp_path, 12, ppid=10, session=12, pages=4)
    process(tmp_path, 14, ppid=1, session=12, pages=8)  # its parent has gone
    process(tmp_path, 15, ppid=1, session=10, pages=16)
    process(tmp_path, 20, ppid=1, session=20, pages=32)
    (tmp_path / "proc/self").mkdir()
    tree = ProcessTree(10, tmp_path)
    tree.find()
    assert tree.pids == {10, 12, 13, 14, 15}
    assert tree.look() == (0.0, 31 * PAGE_BYTES)


def test_it_counts_what_was_computed_since_it_was_first_seen(tmp_path: Path) -> None:
    process(tmp_path, 10, ppid=1, session=10, cpu_s=5.0)
    tree = ProcessTree(10, tmp_path)
    assert tree.look() == (0.0, 0)
    process(tmp_path, 10, ppid=1, session=10, cpu_s=6.0)
    process(tmp_path, 11, ppid=10, session=10, cpu_s=100.0)
    tree.find()
    assert tree.look() == (pytest.approx(1.0), 0)
    process(tmp_path, 11, ppid=10, session=10, cpu_s=102.0)
    assert tree.look() == (pytest.approx(3.0), 0)
    shutil.rmtree(tmp_path / "proc/11")
    assert tree.look() == (pytest.approx(3.0), 0), "what the dead have computed is not forgotten"
    tree.find()
    assert tree.pids == {10}


def test_a_number_that_is_given_anew_is_judged_anew(tmp_path: Path) -> None:
    process(tmp_path, 10, ppid=1, session=10)
    process(tmp_path, 20, ppid=1, session=20)
    tree = ProcessTree(10, tmp_path)
    tree.find()
    shutil.rmtree(tmp_path / "proc/20")
    tree.find()
    process(tmp_path, 20, ppid=10, session=10)
    tree.find()
    assert tree.pids == {10, 20}


@pytest.mark.parametrize("state", ["Z", "X"])
def test_without_a_living_member_there_is_nothing_to_say(tmp_path: Path, state: str) -> None:
    process(tmp_path, 10, ppid=1, session=10, state=state)
    assert ProcessTree(10, tmp_path).look() is None


def test_our_own_tree() -> None:
    tree = ProcessTree(os.getppid())
    tree.find()
    assert os.getpid() in tree.pids
    seen = tree.look()
    assert seen is not None
    assert seen[1] > 1 << 20
