"""The segment's states on a clock that the test moves."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from dataclasses import replace

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


def bursts(n: int, turn: int) -> StepColumns:
    """Eight workers deliver together: one wait in eight steps, and 1 % of noise."""
    rng = random.Random(0)
    seconds = [0.8 * rng.gauss(1, 0.01) if i % turn == 0 else 0.01 for i in range(n + 1)]
    return replace(columns(seconds), turn=turn)


@pytest.mark.parametrize("n", [40, 44, 64, 100])
def test_bursts_of_the_loader_are_no_uncertainty(n: int) -> None:
    """True rate: 80 images in 0.87 s, of a window that may end between two bursts."""
    steps = bursts(n, 8)
    rate = steps.throughput(1)
    assert rate is not None
    assert rate.half_width_frac is not None
    true = 80 / 0.87
    assert abs(true / rate.images_per_s - 1) <= rate.half_width_frac + 0.01, "one draw in twenty lies outside"
    assert rate.half_width_frac < 0.02 + (0.12 if n % 8 else 0.0)
    blind = replace(steps, turn=1).throughput(1)
    assert blind is not None
    assert (blind.half_width_frac or 0.0) > 2 * rate.half_width_frac, "cut anywhere"


def test_the_window_holds_five_turns_of_the_loader() -> None:
    segment = Segment(SETTINGS, queue=8)
    segment.steps = replace(segment.steps, turn=8)
    drive(segment, itertools.repeat(0.25, 1000))
    assert segment.measured_from is not None
    assert len(segment.steps.end_s) - segment.measured_from >= 40


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


def test_the_states_in_order() -> None:
    segment = Segment(SETTINGS)
    seen, t = [], 0.0
    for s in [*[4.0 * 0.8**i for i in range(10)], *[0.5] * 30]:
        t += s
        seen.append(segment.step(end_s=t, wait_s=0.0, step_s=s, images=16).value)
    assert [state for state, _ in itertools.groupby(seen)] == ["warmup", "steady", "measuring", "done"]


def test_a_recompile_in_the_window_voids_it() -> None:
    segment = Segment(SETTINGS, queue=8)
    steps = [*[40.0], *[0.25] * 19, *[30.0], *[0.25] * 200]
    compiles = [1] * 20 + [2] * 201
    t = 0.0
    for s, c in zip(steps, compiles, strict=True):
        t += s
        if segment.step(end_s=t, wait_s=0.0, step_s=s, images=16, ready=8, compiles=c) is State.DONE:
            break
    assert segment.state is State.DONE
    assert segment.n_restarts == 1
    assert segment.steady is True
    assert segment.measured_from is not None
    assert segment.measured_from >= 21 + SETTINGS.warmup_steps, "the minimum begins again after the compile"
    rate = segment.steps.throughput(segment.measured_from)
    assert rate is not None
    assert rate.images_per_s == pytest.approx(16 / 0.25)


def test_a_setting_that_goes_on_compiling_is_measured_with_it_and_not_steady() -> None:
    segment = Segment(SETTINGS)
    t = 0.0
    for i in range(500):
        s = 2.0 if i % 20 == 0 else 0.25
        t += s
        if segment.step(end_s=t, wait_s=0.0, step_s=s, images=16, compiles=1 + i // 20) is State.DONE:
            break
    assert segment.state is State.DONE
    assert segment.steady is False


def test_the_window_holds_the_loaders_queue_once() -> None:
    segment = Segment(SETTINGS, queue=64)
    drive(segment, itertools.repeat(0.25, 1000))
    assert segment.measured_from is not None
    assert len(segment.steps.end_s) - segment.measured_from >= 64


def test_a_slow_machine_is_cut_at_the_caps() -> None:
    segment = Segment(SETTINGS, queue=64, buffer_steps=1000)
    drive(segment, itertools.repeat(4.0, 1000))
    assert segment.steps.end_s[-1] <= 4.0 + 20.0 + 30.0 + 2 * 4.0


def test_a_half_drained_queue_is_not_yet_drained() -> None:
    segment = Segment(SETTINGS, queue=16)
    drive(segment, itertools.repeat(0.5, 25), itertools.repeat(8))
    assert segment.state is State.WARMUP
    drive(segment, itertools.repeat(0.5, 7), itertools.repeat(8))
    assert segment.state is State.MEASURING, "twice the queue is enough in any case"


def columns(seconds: list[float], cycle: int = 0) -> StepColumns:
    n = len(seconds)
    return StepColumns(
        end_s=list(itertools.accumulate(seconds)),
        wait_s=[0.0] * n,
        step_s=seconds,
        images=[10] * n,
        ready=[0] * n,
        optimizer_s=[0.1 * (i % cycle == cycle - 1) for i in range(n)] if cycle else [],
    )


def test_halves_that_differ() -> None:
    jitter = [0.0, 0.002, -0.002, 0.001, -0.001]
    slow = columns([0.5, *[0.1 + j for j in jitter * 4], *[0.105 + j for j in jitter * 4]])
    assert slow.halves_differ(1) == pytest.approx(0.05)
    fast = columns([0.5, *[0.1 + j for j in jitter * 4], *[0.095 + j for j in jitter * 4]])
    assert fast.halves_differ(1) == pytest.approx(-0.05)


def test_halves_that_do_not_differ() -> None:
    jitter = [0.0, 0.03, -0.03, 0.01, -0.02]
    assert columns([0.5, *[0.1] * 20, *[0.101] * 20]).halves_differ(1) is None, "1 % is no difference"
    noisy = [0.1 + 0.04 * ((-1) ** (i // 3)) for i in range(20)]
    assert columns([0.5, *noisy, *[s * 1.05 for s in reversed(noisy)]]).halves_differ(1) is None, "not significant"
    assert columns([0.5, *[0.1 + j for j in jitter]]).halves_differ(1) is None, "too short to tell"
    assert columns([0.1] * 30).halves_differ(0) is None, "the step before the window starts its clock"


def test_halves_hold_equally_many_optimizer_steps() -> None:
    # Three cycles of eight: cut in the middle, one half would hold one optimizer step and the other two.
    steps = [0.5, *[0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.2] * 3]
    cycles = columns(steps)
    assert cycles.halves_differ(1, 8) is None
    # On CUDA the optimizer's column lags two steps behind: here one of two optimizer steps is unread.
    late = columns([0.5, *[0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.2] * 2])
    late.optimizer_s.extend([0.0, *[0.0] * 7, 0.1, *[0.0] * 6])
    assert late.halves_differ(1, 8) is None
    drifts = columns([0.5, *[0.1] * 7, 0.2, *[0.15] * 7, 0.25])
    drifts.optimizer_s.extend([0.0, *[0.0] * 7, 0.1, *[0.0] * 6])
    assert drifts.halves_differ(1, 8) is not None


def test_a_drift_extends_the_window_once() -> None:
    settings = SegmentSettings(
        warmup_steps=6,
        warmup_s=1.0,
        warmup_cap_s=20.0,
        measure_s=5.0,
        measure_steps=10,
        measure_cap_s=30.0,
        ci_target_frac=0.5,
    )
    steady, drifting = Segment(settings), Segment(settings)
    drive(steady, itertools.repeat(0.1, 1000))
    # Eight per cent slower from the middle of the first five seconds on.
    drive(drifting, itertools.chain(itertools.repeat(0.1, 37), itertools.repeat(0.108, 1000)))
    for segment, seconds in ((steady, 5.0), (drifting, 10.0)):
        assert segment.measured_from is not None
        window = segment.steps.end_s[-1] - segment.steps.end_s[segment.measured_from - 1]
        assert window == pytest.approx(seconds, abs=0.2)
