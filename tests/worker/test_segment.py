"""The segment's states on a clock that the test moves."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest

from autotune.contract import SegmentSettings, StepColumns
from autotune.worker.segment import Segment, State

SETTINGS = SegmentSettings(
    warmup_steps=6, warmup_s=1.0, warmup_cap_s=20.0, measure_s=5.0, measure_steps=10, measure_cap_s=30.0
)


def drive(segment: Segment, seconds: Iterable[float], ready: Iterable[int] = itertools.repeat(0)) -> int:
    """Feed steps until done; returns how many were taken."""
    t = segment.steps.end_s[-1] if segment.steps.end_s else 0.0
    n = 0
    for s, r in zip(seconds, ready, strict=False):
        t += s
        n += 1
        if segment.step(end_s=t, wait_s=0.0, step_s=s, images=16, ready=r) is State.DONE:
            return n
    return n


def test_flat_steps_are_measured_for_measure_s() -> None:
    segment = Segment(SETTINGS)
    drive(segment, itertools.repeat(0.25, 1000))
    assert segment.state is State.DONE
    assert segment.steady is True
    assert segment.measured_from == 6
    assert segment.steps.end_s[-1] - segment.steps.end_s[5] == pytest.approx(5.0)


def test_slow_start_stays_in_the_warm_up() -> None:
    segment = Segment(SETTINGS)
    drive(segment, [*[4.0 * 0.8**i for i in range(10)], *[0.5] * 100])
    assert segment.measured_from is not None
    assert segment.measured_from > 10
    assert max(segment.steps.step_s[segment.measured_from :]) == 0.5


def test_never_steady_is_cut_at_the_cap_and_says_so() -> None:
    segment = Segment(SETTINGS)
    drive(segment, [0.2 * 1.08**i for i in range(100)])
    assert segment.steady is False
    assert segment.measured_from is not None
    began = segment.steps.end_s[0]
    assert 20.0 <= segment.steps.end_s[segment.measured_from - 1] - began < 22.0


def test_window_is_whole_accumulate_cycles() -> None:
    segment = Segment(SETTINGS, accumulate=4)
    drive(segment, itertools.repeat(0.3, 1000))
    assert segment.measured_from is not None
    assert segment.measured_from % 4 == 0
    assert (len(segment.steps.end_s) - segment.measured_from) % 4 == 0


def test_a_full_queue_does_not_flatter_a_slow_loader() -> None:
    # Sixteen batches lay ready after the slow first step; the workers make one in 0.4 s, the trainer eats one in 0.1 s.
    segment = Segment(SETTINGS, queue=16)
    t, made, steps, ready = 0.0, 16.0, [], []
    for eaten in range(300):
        began = t
        t += 0.1
        made += 0.1 / 0.4
        while made < eaten + 1:
            t += 0.05
            made += 0.05 / 0.4
        steps.append(t - began)
        ready.append(int(made) - eaten - 1)
    drive(segment, steps, ready)
    assert segment.measured_from is not None
    rate = segment.steps.throughput(segment.measured_from)
    assert rate is not None
    assert rate.images_per_s == pytest.approx(16 / 0.4, rel=0.08)
    naive = 16 * 30 / (segment.steps.end_s[39] - segment.steps.end_s[9])
    assert naive > 1.2 * 16 / 0.4, "skip ten, time thirty would have believed the queue"


def test_first_epoch_belongs_to_the_warm_up_when_the_buffer_is_large() -> None:
    segment = Segment(SETTINGS, buffer_steps=30)
    drive(segment, itertools.repeat(0.25, 1000))
    assert segment.measured_from == 30


def test_noisy_steps_get_one_extension() -> None:
    segment = Segment(SETTINGS)
    noisy = itertools.islice(itertools.cycle([0.2, 0.3, 0.22, 0.33, 0.18]), 1000)
    drive(segment, noisy)
    assert segment.measured_from is not None
    window = segment.steps.end_s[-1] - segment.steps.end_s[segment.measured_from - 1]
    assert 5.0 <= window <= 10.5


def test_throughput_counts_production_not_consumption() -> None:
    n = 100
    full = StepColumns(
        end_s=[0.1 * (i + 1) for i in range(n)],
        wait_s=[0.0] * n,
        step_s=[0.1] * n,
        images=[10] * n,
        ready=[60 - min(60, i) for i in range(n)],
    )
    rate = full.throughput(10)
    assert rate is not None
    # 90 batches consumed in 9 s, but 51 of them had been ready: the workers made 39.
    assert rate.images_per_s == pytest.approx(39 * 10 / 9.0)


def test_one_batch_of_drain_is_flicker() -> None:
    steps = StepColumns(
        end_s=[0.1 * (i + 1) for i in range(21)],
        wait_s=[0.0] * 21,
        step_s=[0.1] * 21,
        images=[10] * 21,
        ready=[8] + [7] * 20,
    )
    rate = steps.throughput(1)
    assert rate is not None
    assert rate.images_per_s == pytest.approx(100.0)


def test_interval_needs_five_steps() -> None:
    steps = StepColumns(
        end_s=[float(i) for i in range(8)], wait_s=[0.0] * 8, step_s=[1.0] * 8, images=[4] * 8, ready=[0] * 8
    )
    rate = steps.throughput(4)
    assert rate is not None
    assert rate.half_width_frac is None
    assert steps.throughput(7) is None
