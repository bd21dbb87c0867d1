"""Whatever happens inside a trial: the right outcome, in words, and nothing is left. Real trees, simulated training."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from autotune.contract import Outcome, RunDir, SegmentSettings, TrialDir, TrialSpec
from autotune.run.cleanup import list_shared_memory
from autotune.run.leftover import sweep_files
from autotune.run.trial import run_trial
from tests.faults.tree import Act, Tree, namespaces, run_on_small_disk, run_with_fault, with_limits
from tests.run.trials import spec


@pytest.fixture
def near() -> Iterator[Path]:
    """A folder with a path so short that a trial in it has its TMPDIR in its own folder."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@dataclass(frozen=True)
class Fault:
    """What happens, from inside (a row of worker.faults.FAULTS) or from outside (act), and how it must be told."""

    name: str
    outcome: Outcome
    words: str
    """A pattern in the error line."""
    inside: dict[str, Any] = field(default_factory=dict)
    act: Act | None = None
    n_ranks: int = 1
    limits: dict[str, float] = field(default_factory=dict)


HANG = {"fault": "hang"}
FAULTS = [
    Fault("import never ends", Outcome.TIMEOUT, "the imports in", {"fault": "import_hang"}, limits={"import_s": 1.5}),
    Fault(
        "build never ends",
        Outcome.TIMEOUT,
        "dataset, cache and model in",
        {"fault": "build_hang"},
        limits={"build_s": 1.0},
    ),
    Fault("compile never ends", Outcome.TIMEOUT, "the first step in", HANG, limits={"first_step_s": 1.0}),
    Fault("a step never ends", Outcome.TIMEOUT, r"rank 0 made no step for \d+ s after step 7", {**HANG, "at": 7}),
    Fault("a tree ignores SIGTERM", Outcome.TIMEOUT, "after step 3", {"fault": "stubborn", "at": 3}),
    Fault("SIGSTOP", Outcome.TIMEOUT, "rank 0 made no step", {"fault": "sigstop_self", "at": 7}),
    Fault("SIGKILL", Outcome.CRASH, "SIGKILL", {"fault": "sigkill_self", "at": 7}),
    Fault("a loader worker killed", Outcome.CRASH, "DataLoader worker", {"fault": "loader_killed", "at": 5}),
    Fault("host memory exhausted", Outcome.OOM, "MemoryError", {"fault": "host_memory", "at": 5}),
    Fault("CUDA out of memory", Outcome.OOM, "out of memory", {"fault": "oom", "at": 5}),
    Fault(
        "CUDA out of memory on a rank of two",
        Outcome.OOM,
        "rank 1.*out of memory",
        {"fault": "oom", "at": 5, "rank": 1},
        n_ranks=2,
    ),
    Fault("NaN loss", Outcome.CRASH, "NaN", {"fault": "nan", "at": 5}),
    Fault(
        "SIGKILL a rank of two",
        Outcome.CRASH,
        "rank 1",
        act=lambda tree: tree.rank(1).kill(),
        n_ranks=2,
    ),
    Fault(
        "SIGSTOP a rank of two",
        Outcome.TIMEOUT,
        r"made no step for \d+ s after step",
        act=lambda tree: tree.rank(1).suspend(),
        n_ranks=2,
    ),
    Fault(
        "SIGKILL the launcher of two",
        Outcome.CRASH,
        "SIGKILL",
        act=lambda tree: tree.launcher().kill(),
        n_ranks=2,
    ),
    Fault(
        "a step of one rank of two never ends",
        Outcome.TIMEOUT,
        r"rank 1 made no step for \d+ s after step 17; rank 0 is at step 18",
        {"fault": "hang", "at": 17, "rank": 1},
        n_ranks=2,
    ),
]


def endless(n_ranks: int = 1, limits: dict[str, float] | None = None, **inside: Any) -> TrialSpec:
    """A trial in real time that does not end by itself before its fault."""
    settings = {"step_s": 0.02, **inside}
    asked = spec(
        "demo",
        backend="synthetic",
        batch=8 * n_ranks,
        synthetic=settings,
        segment=SegmentSettings(warmup_s=1000.0, warmup_cap_s=1000.0),
    )
    return with_limits(asked, n_ranks, **(limits or {}))


SLOW = (
    "SIGSTOP a rank of two",
    "a step of one rank of two never ends",
    "a tree ignores SIGTERM",
    "SIGSTOP",
    "CUDA out of memory on a rank of two",
)
"""Of the others, one each takes the same way."""


@pytest.mark.parametrize(
    "fault", [pytest.param(f, id=f.name, marks=[pytest.mark.slow] * (f.name in SLOW)) for f in FAULTS]
)
def test_fault(fault: Fault, near: Path) -> None:
    result = run_with_fault(endless(fault.n_ranks, fault.limits, **fault.inside), near / "run", fault.act)
    assert result.outcome is fault.outcome, result.error
    assert re.search(fault.words, result.error or ""), result.error
    assert result.hint
    assert result.images_per_s is None


def test_dataset_removed_in_mid_trial(near: Path) -> None:
    images = near / "images"
    images.mkdir()
    (images / "1.jpg").write_bytes(b"x")
    asked = endless(fault="reads_folder", folder=str(images))
    result = run_with_fault(asked, near / "run", lambda _: shutil.rmtree(images))
    assert result.outcome is Outcome.CRASH
    assert "No such file or directory" in (result.error or "")
    assert str(images) in (result.error or "")


def short(**inside: Any) -> TrialSpec:
    """A trial in real time that ends well after two seconds."""
    asked = spec("demo", backend="synthetic", synthetic={"step_s": 0.02, **inside})
    return with_limits(asked)


def test_an_abort_after_a_good_record_does_not_spoil_it(near: Path) -> None:
    result = run_with_fault(short(fault="aborts_at_end"), near / "run")
    assert result.outcome in (Outcome.OK, Outcome.UNSTABLE), result.error
    assert result.images_per_s


@pytest.mark.slow
def test_a_process_that_does_not_end_after_a_good_record_does_not_spoil_it(near: Path) -> None:
    result = run_with_fault(short(fault="end_hang"), near / "run")
    assert result.outcome in (Outcome.OK, Outcome.UNSTABLE), result.error
    assert result.images_per_s


def test_what_is_left_in_shared_memory_and_tmpdir_goes(near: Path) -> None:
    result = run_with_fault(short(fault="leaves_files"), near / "run")
    assert result.outcome in (Outcome.OK, Outcome.UNSTABLE), result.error


def test_a_trial_far_down_has_its_tmpdir_elsewhere_and_it_goes_too(near: Path) -> None:
    far = near / ("long" * 20) / "run"
    assert run_with_fault(short(fault="leaves_files"), far).images_per_s
    tmp = TrialDir(far / "trials" / "0001").tmp
    assert not tmp.is_relative_to(near)
    assert not tmp.exists()


@pytest.mark.slow
def test_waiting_for_a_trial_costs_less_than_a_hundredth_of_a_core(near: Path) -> None:
    asked = endless(limits={"total_s": 10.0})  # long enough for the looks into every process at start and end
    cpu, began = time.process_time(), time.monotonic()
    run_trial(asked, TrialDir(near / "run" / "trials" / "0001"), started_s=0.0)
    assert time.process_time() - cpu < 0.01 * (time.monotonic() - began)


def test_a_killed_controller_takes_its_launcher_and_ranks_along(near: Path) -> None:
    tree = Tree(TrialDir(near / "run" / "trials" / "0001"))
    body = """
from pathlib import Path; import sys
from autotune.contract import TrialDir
from autotune.run.trial import run_trial
from tests.faults.test_faults import endless
run_trial(endless(2, fault="leaves_files"), TrialDir(Path(sys.argv[1])), started_s=0.0)
"""
    command = [sys.executable, "-c", body, str(tree.directory.path)]
    controller = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    try:
        wait_for(lambda: tree.directory.stream(1).exists() and len(tree.processes()) == 3 and left_by(tree.processes()))
        orphans = tree.processes()
        controller.kill()
        controller.wait()
        wait_for(lambda: tree.processes() == [])
        left_over = left_by(orphans)
        sweep_files(RunDir(near / "run"))  # as a resumed search does
        assert left_over
        assert left_by(orphans) == set()
        assert not tree.directory.shm_before.exists()
    finally:
        for left in tree.processes():
            left.kill()
    for orphan in orphans:
        with contextlib.suppress(ChildProcessError):  # ours to reap when an earlier test made us a subreaper
            os.waitpid(orphan.pid, 0)


def left_by(processes: list[psutil.Process]) -> set[str]:
    """Names in shared memory that the fault `leaves_files` made in these processes."""
    return {f"{kind}{p.pid:x}" for p in processes for kind in ("psm_", "sem.mp-")} & list_shared_memory()


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(int(30 / 0.05)):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("this did not happen within 30 s")


ON_A_FULL_DISK = """
import json, sys
from pathlib import Path
from autotune.contract import TrialDir
from autotune.errors import MachineError
from autotune.run.trial import run_trial
from tests.faults.test_faults import endless
from tests.faults.tree import Tree
run = Path(sys.argv[1]) / "run"
directory = TrialDir(run / "trials" / "0001")
folder = directory.path / "tmp" if sys.argv[2] == "by the trial" else Path(sys.argv[1])
asked = endless(fault="fills_disk", at=5, folder=str(folder))
try:
    result = run_trial(asked, directory, started_s=0.0)
    said = [result.outcome, result.error, directory.result.exists()]
except MachineError as e:
    said = ["MachineError", e.message, False]
print(json.dumps([*said, len(Tree(directory).processes()), (directory.path / "tmp").exists()]))
"""


def on_small_disk(folder: Path, filled: str) -> list[Any]:
    """Run the script above on a small disk; what it says."""
    end = run_on_small_disk(folder, ON_A_FULL_DISK, filled)
    assert end.returncode == 0, end.stderr
    return json.loads(end.stdout)


@namespaces
def test_disk_filled_by_the_trial(near: Path) -> None:
    outcome, error, written, n_left, tmp_left = on_small_disk(near, "by the trial")
    assert outcome == Outcome.CRASH
    assert "No space left on device" in error
    assert (written, n_left, tmp_left) == (True, 0, False)


@namespaces
def test_disk_filled_for_good(near: Path) -> None:
    outcome, error, _, n_left, tmp_left = on_small_disk(near, "for good")
    assert outcome == "MachineError", "the result cannot be written, and that is the user's business"
    assert "No space left on device" in error
    assert (n_left, tmp_left) == (0, False)


A_SEARCH_ON_A_FULL_DISK = """
import contextlib, sys
from pathlib import Path
from autotune import app, cli
home, when, search = Path(sys.argv[1]), sys.argv[2], app.search

def fill(event):
    if f"{event.kind} {getattr(event, 'number', '')}".strip() == when:
        with contextlib.suppress(OSError), (home / "filler").open("wb", buffering=0) as f:
            while f.write(bytes(4096)):
                pass

app.search = lambda request, observers: search(request, [*observers, fill])
sys.argv = ["autotune", "search", "--dry-run", "-q", "--budget", "5m", "--out", str(home / "out"), "epochs=50"]
cli.main()
"""


@namespaces
@pytest.mark.parametrize(
    "filled",
    [
        "trial_started 2",
        *(pytest.param(f, marks=pytest.mark.slow) for f in ("trial_ended", "by the report, which is larger")),
    ],
)
def test_a_search_on_a_full_disk_says_so(near: Path, filled: str) -> None:
    end = run_on_small_disk(near, A_SEARCH_ON_A_FULL_DISK, filled)
    assert end.returncode == 3, end.stderr
    error, hint = end.stderr.splitlines()
    assert error.startswith("error: cannot write ")
    assert error.endswith(("No space left on device", "disk is full", "disk I/O error")), error
    assert "--resume" in hint
