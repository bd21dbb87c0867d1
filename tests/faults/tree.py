"""One trial of a real process tree that something happens to, and what must be true of the machine afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from autotune.contract import Deadlines, TrialDir, TrialResult, TrialSpec, read_json
from autotune.run.cleanup import list_shared_memory, orphaned
from autotune.run.launch import RUN_TAG, run_tag
from autotune.run.supervise import find_tagged
from autotune.run.trial import run_trial
from autotune.run.watch import Live

LIMITS = Deadlines(
    import_s=60.0, build_s=60.0, first_step_s=60.0, stall_s=3.0, stall_steps=0.0, total_s=120.0, grace_s=1.0
)
GONE_S = 15.0
"""The tree is gone so soon after the fault was seen."""


@dataclass(frozen=True)
class Tree:
    """The processes of the running trial, for those who act on them."""

    directory: TrialDir

    def processes(self) -> list[psutil.Process]:
        return find_tagged(run_tag(self.directory.path), RUN_TAG)

    def launcher(self) -> psutil.Process:
        return next(p for p in self.processes() if "autotune.worker.agent" in p.cmdline())

    def rank(self, rank: int) -> psutil.Process:
        """The rank itself, not its loader workers, which are forks of it with the same environment."""
        mine = [p for p in self.processes() if p.environ().get("RANK", "0") == str(rank) and "RANK" in p.environ()]
        pids = {p.pid for p in mine}
        return next(p for p in mine if p.ppid() not in pids)

    def loader_worker(self) -> psutil.Process:
        return next(p for p in self.processes() if p.ppid() != os.getpid())


Act = Callable[[Tree], object]


def run_with_fault(spec: TrialSpec, folder: Path, act: Act | None = None, *, at: int = 5) -> TrialResult:
    """Run the trial; `act` is called once, after `at` steps; then look whether anything is left of it.

    Args:
        spec: the trial.
        folder: the run's folder, new.
        act: what happens to the tree.
        at: steps of rank 0.
    """
    directory = TrialDir(folder / "trials" / "0001")
    shm, zombies = list_shared_memory(), _zombies()
    todo = [act] if act else []

    def watch(live: Live) -> None:
        if live.n_steps >= at and todo:
            todo.pop()(Tree(directory))

    began = time.monotonic()
    result = run_trial(spec, directory, started_s=0.0, watch=watch)
    ended = time.monotonic()
    assert not todo, f"the fault never happened: {result}"
    assert ended - began - result.took_s < GONE_S
    assert Tree(directory).processes() == []
    assert _zombies() == zombies
    assert _becomes_empty(lambda: orphaned(shm))
    assert not directory.shm_before.exists()
    assert not (directory.path / "tmp").exists()
    assert read_json(directory.result, TrialResult) == result
    return result


def with_limits(spec: TrialSpec, n_ranks: int = 1, **limits: float) -> TrialSpec:
    """The spec with short deadlines."""
    return replace(spec, n_ranks=n_ranks, deadlines=replace(LIMITS, **limits))


def _zombies() -> set[int]:
    return {p.pid for p in psutil.Process().children() if p.status() == psutil.STATUS_ZOMBIE}


def _becomes_empty(left: Callable[[], Collection[object]]) -> bool:
    """True once there is none; another killed tree on this machine may leave some, and removes it itself."""
    for _ in range(100):
        if not left():
            return True
        time.sleep(0.1)
    return False


def run_on_small_disk(folder: Path, script: str, filled: str) -> subprocess.CompletedProcess[str]:
    """Run a script with a tmpfs of 2 MiB over the folder, in a user namespace of its own."""
    mount = 'mount -t tmpfs -o size=2m tmpfs "$1" && exec "$2" -c "$3" "$1" "$4"'
    command = ["unshare", "-rm", "sh", "-c", mount, "sh", str(folder), sys.executable, script, filled]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2], check=False
    )


namespaces = pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0,
    reason="no user namespaces here, so no small disk either",
)
