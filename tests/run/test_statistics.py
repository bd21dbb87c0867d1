"""From raw columns to the numbers that are shown, on columns whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autotune.contract import Outcome, RankRecord, StepColumns, TrialResult
from autotune.run.outcome import Judgement
from autotune.run.statistics import build_result
from tests.run.trials import spec


def record(rank: int, step_s: float, *, images: int = 10, n: int = 41, ready: list[int] | None = None) -> RankRecord:
    """Forty measured steps; every fourth takes an optimizer step of a tenth of it."""
    steps = StepColumns(
        end_s=[step_s * (i + 1) for i in range(n)],
        wait_s=[0.2 * step_s] * n,
        step_s=[step_s] * n,
        images=[images] * n,
        ready=ready or [0] * n,
        prepare_s=[0.05 * step_s] * n,
        forward_s=[0.3 * step_s] * n,
        backward_s=[0.4 * step_s] * n,
        optimizer_s=[0.1 * step_s * (i % 4 == 0) for i in range(n)],
    )
    return RankRecord(rank=rank, status="done", steps=steps, measured_from=1)


def result(*records: RankRecord) -> TrialResult:
    return build_result(spec("x"), records, Judgement(Outcome.OK), started_s=0.0, took_s=1.0)


def test_one_rank() -> None:
    got = result(record(0, 0.1))
    assert got.images_per_s == pytest.approx(100.0)
    assert got.ci95_lo == pytest.approx(100.0)
    assert got.ci95_hi == pytest.approx(100.0)
    assert got.step_p50_s == got.step_p99_s == pytest.approx(0.1)
    assert got.wait_frac == pytest.approx(0.2)
    assert got.n_steps == 40
    parts = {"wait": 0.02, "prepare": 0.005, "forward": 0.03, "backward": 0.04, "optimizer": 0.0025, "rest": 0.0025}
    assert got.parts_s == pytest.approx(parts)
    assert list(got.parts_s) == list(parts)


def test_images_of_all_ranks_over_the_time_of_the_slowest() -> None:
    got = result(record(0, 0.1, images=10), record(1, 0.125, images=12))
    assert got.images_per_s == pytest.approx((400 + 480) / (40 * 0.125))
    assert got.step_p50_s == pytest.approx(0.125), "of each step the slowest rank counts"
    assert sum(got.parts_s.values()) == pytest.approx((0.1 + 0.125) / 2)


def test_a_queue_that_drains_on_one_rank_does_not_count() -> None:
    drains = record(1, 0.1, ready=[20, *[20 - i // 2 for i in range(40)]])
    got = result(record(0, 0.1), drains)
    assert got.images_per_s == pytest.approx((400 + 400 - 10 * 19) / 4.0)


def test_a_rank_without_a_window_leaves_no_rate() -> None:
    silent = RankRecord(rank=1, status="done", steps=record(1, 0.1).steps, measured_from=None)
    got = result(record(0, 0.1), silent)
    assert got.images_per_s is None
    assert got.parts_s == {}


def test_a_backend_without_anatomy() -> None:
    bare = record(0, 0.1)
    bare.steps.forward_s.clear()
    got = result(bare)
    assert got.parts_s == {}
    assert got.images_per_s == pytest.approx(100.0)


def test_rest_is_never_negative() -> None:
    late = record(0, 0.1)
    late.steps.backward_s[:] = [0.06] * 41
    assert result(late).parts_s["rest"] == 0.0


def test_a_rank_waits_in_its_backward_pass_for_the_one_that_begins_it_last() -> None:
    """The same step on both; rank 1 is ready for the reduction 20 ms later, in every fourth step 40 ms."""
    first, second = record(0, 0.1), record(1, 0.1)
    first.steps.backward_s[:] = [0.06 if i % 4 else 0.08 for i in range(41)]
    second.steps.backward_s[:] = [0.04] * 41
    got = result(first, second)
    # 30 steps of 20 ms and 10 of 40 ms, on one of two ranks: 12.5 ms of 100 ms.
    assert got.straggler_frac == pytest.approx(0.125)
    assert result(second, first).straggler_frac == pytest.approx(0.125)
    assert result(first).straggler_frac is None, "one rank waits for nobody"
    second.steps.backward_s.clear()
    assert result(first, second).straggler_frac is None, "no anatomy"


def test_ranks_that_exchange_nothing_count_as_the_slowest() -> None:
    """Rank 1 made 25 % more steps in its window, and would not have had them with the others to wait for."""
    ran = [record(0, 0.1), record(1, 0.08, n=51)]
    probe = replace(spec("x"), role="probe", probe="no_sync")
    got = build_result(probe, ran, Judgement(Outcome.OK), started_s=0.0, took_s=1.0)
    assert got.images_per_s == pytest.approx(200.0)
    assert got.straggler_frac is None
    assert result(*ran).images_per_s == pytest.approx(900 / 4.0)
