"""What a rank leaves behind, on a clock that the test moves."""

from __future__ import annotations

import errno
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import pytest

from autotune.contract import RankRecord, SegmentSettings, TrialDir, read_json
from autotune.worker import __main__ as worker
from autotune.worker.recorder import Recorder
from tests.run.trials import spec

SETTINGS = SegmentSettings(
    warmup_steps=6, warmup_s=1.0, warmup_cap_s=20.0, measure_s=5.0, measure_steps=10, measure_cap_s=30.0
)


class FakeClock:
    """Stands still until the test moves it."""

    def __init__(self) -> None:
        self.t = 0.0

    def __call__(self) -> float:
        return self.t

    def spend(self, seconds: float) -> None:
        self.t += seconds


def test_ranks_stop_after_the_same_step_with_whole_optimizer_cycles(tmp_path: Path) -> None:
    asked = replace(spec("x", segment=SETTINGS), n_ranks=2)
    clocks = [FakeClock(), FakeClock()]
    ranks = [Recorder(asked, TrialDir(tmp_path), rank=r, clock=clock) for r, clock in enumerate(clocks)]
    for recorder in ranks:
        recorder.segment.accumulate = 4
    # Rank 1 is a little slower and would begin and end its window elsewhere, if it were asked.
    over: list[int | None] = [None, None]
    for n in range(1, 200):
        for r, seconds in enumerate((0.3, 0.31)):
            if over[r] is None:
                clocks[r].spend(seconds)
                if ranks[r].step(wait_s=0.0, step_s=seconds, images=16):
                    over[r] = n
                    ranks[r].write()
        if None not in over:
            break
    assert over[0] == over[1]
    records = [read_json(TrialDir(tmp_path).rank(r), RankRecord) for r in (0, 1)]
    assert records[0].measured_from == records[1].measured_from
    assert records[0].measured_from is not None
    assert (len(records[0].steps.end_s) - records[0].measured_from) % 4 == 0
    assert len(records[0].steps.end_s) == len(records[1].steps.end_s)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_ranks_that_exchange_nothing_stop_ahead_of_the_one_that_is_furthest(tmp_path: Path, accumulate: int) -> None:
    """Rank 1 is twice as fast: it must learn of the last step before it is past it, or it waits in an epoch's end."""
    asked = replace(spec("x", segment=SETTINGS), n_ranks=2, role="probe", probe="no_sync")
    clocks = [FakeClock(), FakeClock()]
    ranks = [Recorder(asked, TrialDir(tmp_path), rank=r, clock=clock) for r, clock in enumerate(clocks)]
    for recorder in ranks:
        recorder.segment.accumulate = accumulate
    n = [0, 0]
    over = [False, False]
    while not all(over):
        r = 1 if not over[1] and (over[0] or clocks[1].t <= clocks[0].t) else 0
        seconds = (0.3, 0.15)[r]
        clocks[r].spend(seconds)
        n[r] += 1
        over[r] = ranks[r].step(wait_s=0.0, step_s=seconds, images=16)
    for recorder in ranks:
        recorder.write()
    assert n[0] == n[1]
    assert (n[0] - (ranks[0].segment.measured_from or 0)) % accumulate == 0


def test_on_a_full_disk_the_record_takes_the_place_of_the_private_tmpdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for directory in (TrialDir(tmp_path / ("far" * 20)), TrialDir(Path(mkdtemp(prefix="t", dir="/tmp")))):
        monkeypatch.setenv("TMPDIR", str(directory.tmp))  # as a trial has it
        monkeypatch.setattr(tempfile, "tempdir", None)
        directory.tmp.mkdir(parents=True)

        class Full(Recorder):
            def write(self, error: BaseException | None = None) -> None:
                if self.directory.tmp.exists():
                    raise OSError(errno.ENOSPC, "No space left on device")
                super().write(error)

        directory.path.mkdir(exist_ok=True)
        worker._write(Full(spec("x"), directory), None)
        assert read_json(directory.rank(0), RankRecord).status == "failed"
        shutil.rmtree(directory.path)


def test_a_voided_window_counts_as_warm_up(tmp_path: Path) -> None:
    clock = FakeClock()
    recorder = Recorder(spec("x", segment=SETTINGS), TrialDir(tmp_path), clock=clock)
    clock.spend(2.0)
    recorder.phase("build")
    for n in range(200):
        step_s = 3.0 if n == 15 else 0.25
        clock.spend(step_s)
        if recorder.step(wait_s=0.0, step_s=step_s, images=16, compiles=1 + (n >= 15)):
            break
    recorder.write()
    record = read_json(TrialDir(tmp_path).rank(0), RankRecord)
    assert record.measured_from is not None
    assert record.measured_from > 16
    assert sum(record.phases_s.values()) == pytest.approx(clock.t)
    window = record.steps.end_s[-1] - record.steps.end_s[record.measured_from - 1]
    assert record.phases_s["measure"] == pytest.approx(window)
    lines = TrialDir(tmp_path).stream(0).read_text().splitlines()
    flags = "".join(line.split()[5] for line in lines)
    assert flags.rstrip("1").endswith("0"), "the stream's last stretch of measured steps is the window"
    assert len(flags) - len(flags.rstrip("1")) == len(record.steps.end_s) - record.measured_from


def test_the_window_is_rank_0s_also_where_another_rank_would_begin_one_in_the_last_steps(tmp_path: Path) -> None:
    asked = replace(spec("x", segment=replace(SETTINGS, warmup_cap_s=1.5)), n_ranks=2)
    directory = TrialDir(tmp_path)
    clocks = [FakeClock(), FakeClock()]
    ranks = [Recorder(asked, directory, rank=r, clock=clock) for r, clock in enumerate(clocks)]
    over = [False, False]
    while not all(over):
        # Rank 1 is in warm-up by its own clock until rank 0 has said where all stop.
        for r, seconds in enumerate((0.3, 1.0 if directory.stop_at.exists() else 0.001)):
            clocks[r].spend(seconds)
            over[r] = ranks[r].step(wait_s=0.0, step_s=seconds, images=16)
    for recorder in ranks:
        recorder.write()
    records = [read_json(directory.rank(r), RankRecord) for r in (0, 1)]
    assert records[0].measured_from is not None
    assert records[1].measured_from == records[0].measured_from
