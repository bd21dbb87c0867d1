from __future__ import annotations

from types import SimpleNamespace

import pytest

from autotune.contract import Gpu
from autotune.machine.nvml import (
    FREE_LIMIT_S,
    read_driver,
    read_gpus,
    used_memory,
    users,
    wait_until_free,
)


class FakeNvml:
    """What pynvml offers, for two GPUs; `fail` names a function that raises, `lost` a GPU that does not answer.

    `used` holds the bytes in use on every GPU at each look; the last one stays.
    """

    class NVMLError(Exception):
        pass

    def __init__(self, *, fail="", lost=None, as_bytes=False, used=(0,), pids=()):
        self.fail, self.lost, self.as_bytes, self.open = fail, lost, as_bytes, 0
        self.used = list(used)
        self.pids = pids

    def __getattr__(self, name):
        def call(*args):
            if name == self.fail or (self.lost is not None and args == (self.lost,)):
                raise self.NVMLError(name)
            text = (lambda t: t.encode()) if self.as_bytes else (lambda t: t)
            answers = {
                "nvmlInit": lambda: setattr(self, "open", self.open + 1),
                "nvmlShutdown": lambda: setattr(self, "open", self.open - 1),
                "nvmlDeviceGetCount": lambda: 2,
                "nvmlDeviceGetHandleByIndex": lambda i: i,
                "nvmlDeviceGetUUID": lambda i: text(f"GPU-{i}"),
                "nvmlDeviceGetName": lambda i: text("NVIDIA H100 80GB HBM3"),
                "nvmlDeviceGetHandleByUUID": lambda uuid: int(uuid[-1]),
                "nvmlDeviceGetMemoryInfo": lambda i: SimpleNamespace(total=80 << 30, used=self._look()),
                "nvmlDeviceGetComputeRunningProcesses": lambda i: [SimpleNamespace(pid=p) for p in self.pids if i == 1],
                "nvmlSystemGetDriverVersion": lambda: text("580.1"),
            }
            return answers[name](*args)

        return call

    def _look(self):
        return self.used.pop(0) if len(self.used) > 1 else self.used[0]


@pytest.mark.parametrize("as_bytes", [False, True])
def test_gpus(as_bytes):
    nvml = FakeNvml(as_bytes=as_bytes)
    gpus = tuple(Gpu(index=i, uuid=f"GPU-{i}", name="NVIDIA H100 80GB HBM3", mem_bytes=80 << 30) for i in range(2))
    assert read_gpus(nvml) == gpus
    assert read_driver(nvml) == "580.1"
    assert nvml.open == 0


@pytest.mark.parametrize("fail", ["nvmlInit", "nvmlDeviceGetCount"])
def test_no_nvml_is_no_gpu(fail):
    nvml = FakeNvml(fail=fail)
    assert read_gpus(nvml) == ()
    assert nvml.open == 0


def test_driver_that_does_not_answer():
    assert read_driver(FakeNvml(fail="nvmlInit")) is None
    assert read_driver(FakeNvml(fail="nvmlSystemGetDriverVersion")) is None


def test_a_lost_gpu_is_left_out():
    assert [g.index for g in read_gpus(FakeNvml(lost=0))] == [1]


def test_shutdown_may_fail():
    assert len(read_gpus(FakeNvml(fail="nvmlShutdown"))) == 2


def test_memory_in_use_by_index_or_uuid():
    assert used_memory(("0", "GPU-1"), FakeNvml(used=[5, 7])) == {"0": 5, "GPU-1": 7}
    assert used_memory((), FakeNvml(fail="nvmlInit")) == {}
    assert used_memory(("0", "1"), FakeNvml(lost=0)) == {"1": 0}
    assert used_memory(("0",), FakeNvml(fail="nvmlInit")) == {}


GIB = 1 << 30


def test_waits_until_the_memory_of_a_dead_trial_is_back():
    slept = []
    nvml = FakeNvml(used=[20 * GIB, 9 * GIB, 3 * GIB, 2 * GIB + (250 << 20)])
    assert wait_until_free({"GPU-0": 2 * GIB}, nvml, sleep=slept.append)
    assert len(slept) == 3
    assert nvml.open == 0


def test_memory_that_does_not_come_back_is_told_and_not_waited_for_for_ever(caplog):
    slept = []
    assert not wait_until_free({"GPU-0": 0}, FakeNvml(used=[20 * GIB]), sleep=slept.append)
    assert sum(slept) == pytest.approx(FREE_LIMIT_S)
    assert "GPU memory in use" in caplog.text


def test_a_gpu_that_fell_off_the_bus_is_not_waited_for():
    assert wait_until_free({"0": 0}, FakeNvml(lost=0, used=[20 * GIB]), sleep=pytest.fail)
    assert wait_until_free({}, FakeNvml(used=[20 * GIB]), sleep=pytest.fail)


def test_who_uses_a_gpu():
    assert users(["GPU-0", "GPU-1"], FakeNvml(pids=(40, 7))) == {"GPU-1": (7, 40)}
    assert users(["GPU-0", "GPU-1"], FakeNvml()) == {}
    assert users(["GPU-1"], FakeNvml(pids=(7,), fail="nvmlDeviceGetComputeRunningProcesses")) == {}
    assert users([]) == {}
