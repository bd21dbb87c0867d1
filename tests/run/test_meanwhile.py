"""The summary of a window, its energy, and what makes it void: on synthetic GPUs and a clock that nobody waits for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autotune.contract import Meanwhile, Outcome
from autotune.machine.fake_nvml import FakeNvml, FakeWorld
from autotune.machine.fake_worlds import healthy, healthy_world, lost_in_mid_run, not_supported_everywhere, throttling
from autotune.run.meanwhile import judged, meanwhile, power_of, window_of
from autotune.run.outcome import Judgement
from autotune.run.sample import Samples
from tests.run.sampled import BEGAN_S, FakeClock, record, sampled, sampler

WINDOW = (10.0, 20.0)


def seen(folder: Path, nvml_of, *, gpus: tuple[str, ...] = ("GPU-0",), every_s: float = 0.25, until_s=25.0) -> Samples:
    clock = FakeClock()
    with sampler(folder, nvml_of(clock.of_world), clock, gpus) as made:
        sampled(made, clock, until_s=until_s, every_s=every_s)
    return made.samples


def joules(t: float) -> float:
    """500 W before the window (a compile), 300 W on average in it, 50 W after; in it the power swings by a third."""
    swing = sum(100.0 if int(x) % 2 else -100.0 for x in range(10, int(min(t, 20.0)))) if t > 10 else 0.0
    rest = (min(t, 20.0) % 1) * (100.0 if int(t) % 2 else -100.0) if 10 <= t < 20 else 0.0
    return 500 * min(t, 10.0) + 300 * max(0.0, min(t, 20.0) - 10.0) + 50 * max(0.0, t - 20.0) + swing + rest


def watts(t: float) -> float:
    if not 10 <= t < 20:
        return 500.0 if t < 10 else 50.0
    return 400.0 if int(t) % 2 else 200.0


def curve(clock, *, counts: bool, reports: bool = True) -> FakeNvml:
    """A synthetic GPU with that power; older ones do not count it."""

    def world(t: float) -> FakeWorld:
        energy_j = 1000.0 + joules(t) if counts else None
        return healthy_world(1, t).changed(0, energy_j=energy_j, power_w=watts(t) if reports else None)

    return FakeNvml(world, clock)


def test_the_window_on_the_samplers_clock() -> None:
    samples = Samples(began_s=BEGAN_S - 3.0)
    assert window_of(samples, record()) == (13.0, 23.0)
    assert window_of(samples, record(measured_from=None)) is None
    assert window_of(samples, record(began_s=None)) is None, "its seconds are simulated"


@pytest.mark.parametrize("every_s", [0.25, 0.5, 1.0])
def test_only_the_window_counts(tmp_path: Path, every_s: float) -> None:
    power = power_of(seen(tmp_path, lambda c: curve(c, counts=True), every_s=every_s), WINDOW)
    assert power is not None
    assert power.source == "counter"
    assert power.watts == pytest.approx(300.0, rel=0.04)


def test_counter_and_summed_power_agree(tmp_path: Path) -> None:
    counted = power_of(seen(tmp_path / "a", lambda c: curve(c, counts=True)), WINDOW)
    summed = power_of(seen(tmp_path / "b", lambda c: curve(c, counts=False)), WINDOW)
    assert counted is not None
    assert summed is not None
    assert (counted.source, summed.source) == ("counter", "power")
    assert summed.watts == pytest.approx(counted.watts, rel=0.05)


def test_a_gpu_that_counts_beside_one_that_does_not(tmp_path: Path) -> None:
    def mixed(clock) -> FakeNvml:
        return FakeNvml(lambda t: healthy_world(2, t, busy=True).changed(1, energy_j=None), clock)

    power = power_of(seen(tmp_path, mixed, gpus=("GPU-0", "GPU-1")), WINDOW)
    assert power is not None
    assert (power.source, power.watts) == ("power", pytest.approx(1200.0))


def test_what_was_not_seen_is_not_measured(tmp_path: Path) -> None:
    samples = seen(tmp_path / "a", lambda c: curve(c, counts=True), until_s=14.0)
    assert power_of(samples, WINDOW) is None, "looks at less than half of the window"
    assert meanwhile(samples, WINDOW) is not None
    assert meanwhile(samples, (30.0, 40.0)) is None
    assert power_of(seen(tmp_path / "b", lambda c: curve(c, counts=False, reports=False)), WINDOW) is None
    assert power_of(seen(tmp_path / "c", healthy, gpus=()), WINDOW) is None, "the CPU has no such counter"
    lost = seen(tmp_path / "d", lambda c: lost_in_mid_run(2, c, since_s=14.0), gpus=("GPU-0", "GPU-1"))
    assert power_of(lost, WINDOW) is None


def test_a_window_in_means_and_peaks(tmp_path: Path) -> None:
    found = meanwhile(seen(tmp_path, lambda c: curve(c, counts=True)), WINDOW)
    assert found is not None
    (gpu,) = found.gpus
    assert found.n_samples == 41
    assert (found.energy_from, found.voided_by) == ("counter", None)
    assert (gpu.uuid, gpu.mem_peak_bytes, gpu.temp_peak_c) == ("GPU-0", 512 << 20, 35.0)
    assert gpu.power_w == pytest.approx(300.0, rel=0.03)
    assert (gpu.slowed_frac, gpu.capped_frac) == (0.0, 0.0)
    assert found.cpu_frac is None
    assert found.rss_peak_bytes == 0


def test_gpus_that_say_nothing_leave_no_figures(tmp_path: Path) -> None:
    found = meanwhile(seen(tmp_path, lambda _: not_supported_everywhere()), WINDOW)
    assert found is not None
    (gpu,) = found.gpus
    assert (gpu.util_frac, gpu.power_w, gpu.sm_hz, gpu.slowed_frac) == (None,) * 4
    assert (found.energy_from, found.voided_by) == (None, None)


@pytest.mark.parametrize(
    ("bit", "said"),
    [
        ("GpuIdle", None),
        ("ApplicationsClocksSetting", None),
        ("SwPowerCap", None),
        ("HwThermalSlowdown", "heat"),
        ("SwThermalSlowdown", "heat"),
        ("HwPowerBrakeSlowdown", "the power supply"),
        ("HwSlowdown", "its own protection (hardware slowdown)"),
    ],
)
def test_what_lowers_the_clock_makes_the_window_void(tmp_path: Path, bit: str, said: str | None) -> None:
    def world(clock) -> FakeNvml:
        reasons = getattr(FakeNvml(FakeWorld()), f"nvmlClocksEventReason{bit}")
        return FakeNvml(lambda t: healthy_world(1, t).changed(0, reasons=reasons if t >= 15.0 else 0), clock)

    found = meanwhile(seen(tmp_path, world), WINDOW)
    assert found is not None
    expected = said and f"GPU GPU-0 was slowed down by {said} in 51% of the samples"
    assert found.voided_by == expected
    assert found.gpus[0].capped_frac == (pytest.approx(21 / 41) if bit == "SwPowerCap" else 0.0)


def test_a_slowdown_outside_the_window_does_no_harm(tmp_path: Path) -> None:
    assert meanwhile(seen(tmp_path, lambda c: throttling(1, c, since_s=20.1)), WINDOW).voided_by is None


def test_one_sample_of_a_long_window_is_forgiven(tmp_path: Path) -> None:
    def once(clock) -> FakeNvml:
        return FakeNvml(lambda t: healthy_world(1, t).changed(0, reasons=0x40 if t == 15.0 else 0), clock)

    samples = seen(tmp_path, once, until_s=50.0)
    assert meanwhile(samples, (10.0, 50.0)).voided_by is None
    assert meanwhile(samples, (10.0, 20.0)).voided_by is not None


def test_a_stranger_makes_the_window_void_while_he_is_there(tmp_path: Path) -> None:
    samples = seen(tmp_path, healthy)
    samples.strangers += [(9.0, "process 7 (x) computed on GPU GPU-0")]
    assert meanwhile(samples, WINDOW).voided_by is None
    samples.strangers += [(12.0, "process 8 (y) computed on GPU GPU-0")]
    assert meanwhile(samples, WINDOW).voided_by == "process 8 (y) computed on GPU GPU-0"


def test_a_void_window_is_no_good_number() -> None:
    heat = Meanwhile(n_samples=4, voided_by="GPU 0 was slowed down by heat in 50% of the samples")
    hot = judged(Judgement(Outcome.OK), heat)
    assert hot.outcome is Outcome.UNSTABLE
    assert hot.error == "GPU 0 was slowed down by heat in 50% of the samples while it was measured"
    assert "cooling" in (hot.hint or "")
    crowd = judged(Judgement(Outcome.OK), Meanwhile(n_samples=4, voided_by="process 8 (y) computed on GPU 0"))
    assert (crowd.outcome, "end the other one" in (crowd.hint or "")) == (Outcome.UNSTABLE, True)
    crash = Judgement(Outcome.CRASH, "it crashed")
    assert judged(crash, heat) == crash
    fine = Judgement(Outcome.OK)
    assert judged(fine, None) == judged(fine, replace(heat, voided_by=None)) == fine
