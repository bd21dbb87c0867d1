"""GPUs on synthetic worlds: there is none here."""

from __future__ import annotations

from dataclasses import fields

import pytest

from autotune.contract import GPU_COLUMNS
from autotune.machine.fake_nvml import FakeGpu, FakeNvml, FakeWorld
from autotune.machine.fake_worlds import foreign_process, healthy, lost_in_mid_run, mismatch, not_supported_everywhere
from autotune.machine.gpu_activity import GpuActivity, looking_at


def test_the_columns_are_those_of_the_file() -> None:
    assert tuple(f.name for f in fields(GpuActivity)) == GPU_COLUMNS


def test_one_look_in_si_units() -> None:
    nvml = healthy(2, busy=True)
    with looking_at(("1", "GPU-0"), nvml) as gpus:
        assert nvml.open == 1
        nvml.sleep(2.0)
        first, second = gpus.look()
        assert gpus.users() == {"1": frozenset(), "GPU-0": frozenset()}
    assert nvml.open == 0
    assert first == second
    assert first == GpuActivity(
        util_frac=0.97,
        mem_bytes=40 << 30,
        power_w=600.0,
        sm_hz=1755e6,
        mem_hz=2619e6,
        reasons=0,
        temp_c=62.0,
        energy_j=2200.0,
    )


def test_a_gpu_that_says_nothing_is_asked_once() -> None:
    asked: list[str] = []

    class Counting(FakeNvml):
        def _call(self, name: str, *args: object, **kwargs: object) -> object:
            asked.append(name)
            return super()._call(name, *args, **kwargs)

    with looking_at(("GPU-0",), Counting(not_supported_everywhere().world)) as gpus:
        looks = [gpus.look() for _ in range(3)]
    assert looks == [(GpuActivity(mem_bytes=512 << 20),)] * 3
    assert asked.count("nvmlDeviceGetMemoryInfo") == 3
    assert asked.count("nvmlDeviceGetPowerUsage") == 1


def test_a_gpu_that_falls_off_the_bus_is_told_once_and_silent_from_then_on(caplog: pytest.LogCaptureFixture) -> None:
    nvml = lost_in_mid_run(2, since_s=10.0)
    with looking_at(("GPU-0", "GPU-1"), nvml) as gpus:
        assert gpus.look()[1].power_w == 600.0
        nvml.sleep(10.0)
        looks = [gpus.look() for _ in range(2)]
    assert [(a.power_w, b) for a, b in looks] == [(600.0, GpuActivity())] * 2
    assert caplog.text.count("GPU GPU-1 is lost") == 1


def test_who_computes() -> None:
    with looking_at(("GPU-0",), foreign_process(pid=77)) as gpus:
        assert gpus.users() == {"GPU-0": frozenset({77})}
    hidden = FakeNvml(FakeWorld(gpus=(FakeGpu(uuid="GPU-0", pci="0000:1b:00.0", compute=None),)))
    with looking_at(("GPU-0",), hidden) as gpus:
        assert gpus.users() == {}


def test_without_nvml_or_without_gpus_nothing_is_said() -> None:
    with looking_at(("GPU-0",), mismatch()) as gpus:
        assert gpus.look() == (GpuActivity(),)
    with looking_at((), mismatch()) as gpus:
        assert (gpus.look(), gpus.users()) == ((), {})


def test_an_unknown_gpu_says_nothing() -> None:
    with looking_at(("GPU-7",), healthy()) as gpus:
        assert gpus.look() == (GpuActivity(),)
