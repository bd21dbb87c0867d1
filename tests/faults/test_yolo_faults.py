"""The table of faults on real YOLO training: the same trees, with torch, its loader workers and gloo in them."""

from __future__ import annotations

import json
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from autotune.contract import Outcome, SegmentSettings, TrialSpec
from tests.faults.tree import Act, Tree, namespaces, run_on_small_disk, run_with_fault, with_limits
from tests.run.trials import spec

pytestmark = pytest.mark.slow


def starve(tree: Tree) -> None:
    """What a full machine does, from outside: not one page more. Large tensors are mapped anew in every step."""
    pid = only_rank(tree).pid
    resource.prlimit(pid, resource.RLIMIT_AS, (1 << 20, 1 << 20))


def only_rank(tree: Tree) -> psutil.Process:
    """The one process that is no loader worker."""
    pids = {p.pid for p in tree.processes()}
    return next(p for p in tree.processes() if p.ppid() not in pids)


@dataclass(frozen=True)
class Fault:
    """As in test_faults; `args` are YOLO's, `spoil` damages the dataset's folder before the trial."""

    name: str
    outcome: Outcome
    words: str
    act: Act | None = None
    n_ranks: int = 1
    args: dict[str, Any] = field(default_factory=dict)
    patches: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    spoil: Callable[[Path], object] | None = None


def every(pattern: str, content: bytes) -> Callable[[Path], None]:
    """Overwrite every file of the dataset that matches."""

    def spoil(dataset: Path) -> None:
        files = sorted(dataset.rglob(pattern))
        assert files
        for path in files:
            path.write_bytes(content)

    return spoil


NO_JPEG, NO_LABEL = b"\xff\xd8\xff\xe0 no picture", b"what is this\n"
LARGE = {"batch": 32, "imgsz": 320}
"""Activations of 50 MB: malloc keeps none of that size."""
LOADER = {"patches": {"workers": 1}}
FAULTS = [
    Fault("SIGKILL the rank", Outcome.CRASH, "SIGKILL", lambda tree: only_rank(tree).kill()),
    Fault("SIGSTOP the rank", Outcome.TIMEOUT, "rank 0 made no step", lambda tree: only_rank(tree).suspend(), **LOADER),
    Fault("SIGKILL a loader worker", Outcome.CRASH, "DataLoader worker", lambda t: t.loader_worker().kill(), **LOADER),
    Fault("a step never ends", Outcome.TIMEOUT, "made no step", lambda t: t.loader_worker().suspend(), **LOADER),
    Fault(
        "a compile never ends",
        Outcome.TIMEOUT,
        "rank 0 did not finish the first step",
        args={"compile": True},
        limits={"first_step_s": 2.0},
    ),
    Fault("host memory exhausted", Outcome.OOM, "memory", starve, args=LARGE, limits={"stall_s": 30.0}),
    Fault("NaN loss", Outcome.CRASH, "NaN", args={"box": 1e39}),
    Fault(
        "every JPEG corrupt",
        Outcome.CRASH,
        "No valid images",
        spoil=every("images/train/*.jpg", b"\xff\xd8\xff\xe0 no picture"),
    ),
    Fault(
        "every label corrupt", Outcome.CRASH, "No valid images", spoil=every("labels/train/*.txt", b"what is this\n")
    ),
    Fault("SIGKILL a rank of two", Outcome.CRASH, "rank 1", lambda tree: tree.rank(1).kill(), n_ranks=2),
    Fault("SIGSTOP a rank of two", Outcome.TIMEOUT, "no step", lambda tree: tree.rank(1).suspend(), n_ranks=2),
    Fault("SIGKILL the launcher of two", Outcome.CRASH, "SIGKILL", lambda t: t.launcher().kill(), n_ranks=2),
]


@pytest.fixture
def near() -> Iterator[Path]:
    """A folder with a path so short that a trial in it has its TMPDIR in its own folder."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def endless(data: Path, fault: Fault) -> TrialSpec:
    """A training that does not end by itself before its fault."""
    segment = SegmentSettings(warmup_s=1000.0, warmup_cap_s=1000.0)
    args = {"batch": 4 * fault.n_ranks, **fault.args}
    return with_limits(
        spec(data, segment=segment, patches=fault.patches, **args), fault.n_ranks, **{"stall_s": 5.0, **fault.limits}
    )


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)
def test_fault(fault: Fault, tiny: Path, near: Path) -> None:
    copy = near / "data"
    shutil.copytree(tiny.parent, copy)
    if fault.spoil:
        fault.spoil(copy)
    result = run_with_fault(endless(copy / tiny.name, fault), near / "run", fault.act, at=2)
    assert result.outcome is fault.outcome, (result.error, result.log_tail)
    assert fault.words in (result.error or "")
    assert result.hint


def test_some_corrupt_files_are_left_out_and_the_rest_trains(tiny: Path, near: Path) -> None:
    copy = near / "data"
    shutil.copytree(tiny.parent, copy)
    every("images/train/00000?.jpg", NO_JPEG)(copy)
    every("labels/train/00001?.txt", NO_LABEL)(copy)
    result = run_with_fault(with_limits(spec(copy / tiny.name, batch=4)), near / "run")
    assert result.outcome in (Outcome.OK, Outcome.UNSTABLE), result.error
    assert result.job["n_images"] == 64 - 20


def test_dataset_removed_in_mid_trial(tiny: Path, near: Path) -> None:
    copy = near / "data"
    shutil.copytree(tiny.parent, copy)
    asked = endless(copy / tiny.name, FAULTS[0])
    result = run_with_fault(asked, near / "run", lambda _: shutil.rmtree(copy / "images"), at=2)
    assert result.outcome is Outcome.CRASH, (result.error, result.log_tail)
    assert "not" in (result.error or "").lower()
    assert str(copy) in (result.error or "") + "\n".join(result.log_tail)


ON_A_FULL_DISK = """
import contextlib, json, sys
from pathlib import Path
from autotune.contract import SegmentSettings, TrialDir
from autotune.errors import MachineError
from autotune.run.trial import run_trial
from tests.faults.tree import Tree, with_limits
from tests.run.trials import spec

home, data = Path(sys.argv[1]), sys.argv[2]
directory = TrialDir(home / "run" / "trials" / "0001")

def fill(live):
    if live.n_steps >= 2:
        with contextlib.suppress(OSError), (home / "filler").open("ab", buffering=0) as f:
            while f.write(bytes(4096)):
                pass

asked = spec(data, segment=SegmentSettings(warmup_s=1000.0, warmup_cap_s=1000.0), batch=4)
try:
    result = run_trial(with_limits(asked, stall_s=20.0), directory, started_s=0.0, watch=fill)
    said = [result.outcome, result.error]
except MachineError as e:
    said = ["MachineError", e.message]
print(json.dumps([*said, len(Tree(directory).processes()), (directory.path / "tmp").exists()]))
"""


@namespaces
def test_disk_full(tiny: Path, near: Path) -> None:
    end = run_on_small_disk(near, ON_A_FULL_DISK, str(tiny))
    assert end.returncode == 0, end.stderr
    outcome, error, n_left, tmp_left = json.loads(end.stdout.splitlines()[-1])
    # With what the trial itself left there removed, its result may find room; else it is the user's business.
    assert outcome in ("crash", "MachineError")
    assert "No space left on device" in error
    assert (n_left, tmp_left) == (0, False)
