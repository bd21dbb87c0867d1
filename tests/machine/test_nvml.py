from __future__ import annotations

from dataclasses import replace

import pytest

from autotune.machine.fake_nvml import FakeNvml, FakeProcess, FakeWorld
from autotune.machine.fake_worlds import healthy_world, mismatch
from autotune.machine.nvml import (
    FREE_LIMIT_S,
    FREE_POLL_S,
    read_driver,
    used_memory,
    users,
    wait_until_free,
)


def world(*, fail: str = "", lost: int | None = None, **fields: object) -> FakeWorld:
    """Two GPUs; `fail` names a function that raises, `lost` a GPU that does not answer; fields are of both GPUs."""
    made = replace(healthy_world(2), errors={fail: "NotSupported"} if fail else {})
    for i in range(2):
        made = made.changed(i, **fields, lost=i == lost)
    return made


def nvml(**fields: object) -> FakeNvml:
    return FakeNvml(world(**fields))  # type: ignore[arg-type]


def test_driver_that_does_not_answer() -> None:
    assert read_driver(nvml(fail="nvmlInit")) is None
    assert read_driver(nvml(fail="nvmlSystemGetDriverVersion")) is None
    assert read_driver(mismatch()) is None


def test_driver() -> None:
    fake = FakeNvml(healthy_world(1), as_bytes=True)
    assert (read_driver(fake), fake.open) == ("580.95.05", 0)


def test_shutdown_may_fail() -> None:
    assert read_driver(nvml(fail="nvmlShutdown")) == "580.95.05"


def test_memory_in_use_by_index_or_uuid() -> None:
    fake = FakeNvml(world(mem_used_bytes=5).changed(1, mem_used_bytes=7))
    assert used_memory(("0", "GPU-1"), fake) == {"0": 5, "GPU-1": 7}
    assert used_memory((), nvml(fail="nvmlInit")) == {}
    assert used_memory(("0", "1"), nvml(lost=0, mem_used_bytes=0)) == {"1": 0}
    assert used_memory(("0",), nvml(fail="nvmlInit")) == {}


GIB = 1 << 30


def test_waits_until_the_memory_of_a_dead_trial_is_back() -> None:
    used = [20 * GIB, 9 * GIB, 3 * GIB, 2 * GIB + (250 << 20)]
    fake = FakeNvml(lambda t: world(mem_used_bytes=used[round(t / FREE_POLL_S)]))
    assert wait_until_free({"GPU-0": 2 * GIB}, fake, sleep=fake.sleep)
    assert fake.now_s == pytest.approx(3 * FREE_POLL_S)
    assert fake.open == 0


def test_memory_that_does_not_come_back_is_told_and_not_waited_for_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    fake = nvml(mem_used_bytes=20 * GIB)
    assert not wait_until_free({"GPU-0": 0}, fake, sleep=fake.sleep)
    assert fake.now_s == pytest.approx(FREE_LIMIT_S)
    assert "GPU memory in use" in caplog.text


def test_a_gpu_that_fell_off_the_bus_is_not_waited_for() -> None:
    assert wait_until_free({"0": 0}, nvml(lost=0, mem_used_bytes=20 * GIB), sleep=pytest.fail)
    assert wait_until_free({}, nvml(mem_used_bytes=20 * GIB), sleep=pytest.fail)


def test_who_uses_a_gpu() -> None:
    two = FakeNvml(world().changed(1, compute=(FakeProcess(pid=40), FakeProcess(pid=7))))
    assert users(["GPU-0", "GPU-1"], two) == {"GPU-1": (7, 40)}
    assert users(["GPU-0", "GPU-1"], nvml()) == {}
    asleep = nvml(compute=(FakeProcess(pid=7),), fail="nvmlDeviceGetComputeRunningProcesses")
    assert users(["GPU-1"], asleep) == {}
    assert users([]) == {}
