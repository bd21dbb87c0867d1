"""A trial that needs more memory than it was given ends as out of memory, with the rank and the figures."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.contract import Outcome, RankRecord, StepColumns, TrialDir
from autotune.run.launch import RUN_TAG, run_tag
from autotune.run.outcome import classify
from autotune.run.supervise import Exit, find_tagged
from autotune.run.trial import run_trial
from autotune.run.watch import Watcher
from tests.run.trials import spec

MIB = 2**20


def good(rank: int, peak_bytes: int) -> RankRecord:
    steps = StepColumns(
        end_s=[0.1 * i for i in range(1, 31)], wait_s=[0.0] * 30, step_s=[0.1] * 30, images=[8] * 30, ready=[0] * 30
    )
    return RankRecord(rank=rank, status="done", steps=steps, measured_from=10, peak_mem_bytes=peak_bytes)


@pytest.fixture
def hog() -> Iterator[subprocess.Popen[str]]:
    """A process of 200 MiB."""
    code = "x = bytearray(b'x') * (200 * 2**20); print(flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_the_rank_that_is_over_is_named(tmp_path: Path, hog: subprocess.Popen[str]) -> None:
    asked = replace(spec("demo"), n_ranks=2, mem_limit_bytes=150 * MIB)
    watcher = Watcher(asked, TrialDir(tmp_path), None)
    # Rank 0 is nobody any more, which is no fault of the limit's.
    TrialDir(tmp_path).stream(0).write_text(f"# pid {2**22 + 1}\n# import\n")
    assert watcher(0.1) is None
    TrialDir(tmp_path).stream(1).write_text(f"# pid {hog.pid}\n# import\n")
    reason = watcher(1.0)
    assert reason is not None
    assert reason.startswith("rank 1 is over its memory limit of 150 MiB: it uses 2")
    judged = classify(asked, [], Exit(returncode=-9, took_s=1.0, reason=reason), ["Traceback", "ValueError: dying"])
    assert (judged.outcome, judged.error) == (Outcome.OOM, reason)
    assert judged.hint
    within = Watcher(replace(asked, mem_limit_bytes=1 << 40), TrialDir(tmp_path), None)
    free = Watcher(replace(asked, mem_limit_bytes=None), TrialDir(tmp_path), None)
    on_gpu = Watcher(replace(asked, gpus=("GPU-0", "GPU-1")), TrialDir(tmp_path), None)
    assert [w(1.0) for w in (within, free, on_gpu)] == [None, None, None]


def test_loader_workers_count(tmp_path: Path) -> None:
    """This process and a child that stands for a loader worker."""
    code = "x = bytearray(b'x') * (300 * 2**20); print(flush=True); input()"
    asked = replace(spec("demo"), mem_limit_bytes=1)
    watcher = Watcher(asked, TrialDir(tmp_path), None)
    TrialDir(tmp_path).stream(0).write_text(f"# pid {os.getpid()}\n")

    def uses(at: float) -> float:
        number, unit = (watcher(at) or "").rsplit(" ", 2)[1:]
        return float(number) * (1024 if unit == "GiB" else 1)

    before = uses(0.1)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        child.stdout.readline()
        assert uses(1.0) >= before + 200
        child.kill()


def test_a_trial_that_came_to_its_end_over_the_limit_is_out_of_memory() -> None:
    asked = replace(spec("demo"), n_ranks=2, mem_limit_bytes=500 * MIB)
    end = Exit(returncode=0, took_s=9.0, reason=None)
    records = [good(0, 400 * MIB), good(1, 501 * MIB)]
    judged = classify(asked, records, end, [])
    assert judged.outcome is Outcome.OOM
    assert judged.error == "rank 1 needed 501 MiB of memory, its limit is 500 MiB"
    assert "GPU memory" in (classify(replace(asked, gpus=("a", "b")), records, end, []).error or "")
    for limit in (501 * MIB, None):
        assert classify(replace(asked, mem_limit_bytes=limit), records, end, []).outcome is Outcome.OK


def test_a_real_trial_is_ended_by_its_limit(tmp_path: Path, tiny: Path) -> None:
    """Torch and Ultralytics alone need more than 200 MiB: it dies while it builds, long before its deadline."""
    asked = replace(spec(tiny, model="tests/models/tiny-detect.yaml"), mem_limit_bytes=200 * MIB)
    result = run_trial(asked, TrialDir(tmp_path / "t"), started_s=0.0)
    assert result.outcome is Outcome.OOM, (result.error, result.log_tail)
    assert result.error
    assert result.error.startswith("rank 0 ")
    assert "limit" in result.error
    assert "200 MiB" in result.error
    assert "--mem-limit" in (result.hint or "")
    assert result.images_per_s is None


@pytest.mark.slow
def test_one_of_two_real_ranks_over_its_limit_ends_both(tmp_path: Path, tiny: Path) -> None:
    asked = replace(spec(tiny, model="yolo11n.yaml", batch=64), n_ranks=2, mem_limit_bytes=350 * MIB)
    result = run_trial(asked, TrialDir(tmp_path / "t"), started_s=0.0)
    assert result.outcome is Outcome.OOM, (result.error, result.log_tail)
    assert "is over its memory limit of 350 MiB" in (result.error or ""), "seen while it ran, not at its end"
    assert find_tagged(run_tag(tmp_path / "t"), RUN_TAG) == []
