from __future__ import annotations

from types import SimpleNamespace

import pytest

from autotune.contract import Gpu
from autotune.machine.nvml import read_driver, read_gpus


class FakeNvml:
    """What pynvml offers, for two GPUs; `fail` names a function that raises, `lost` a GPU that does not answer."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, fail="", lost=None, as_bytes=False):
        self.fail, self.lost, self.as_bytes, self.open = fail, lost, as_bytes, 0

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
                "nvmlDeviceGetMemoryInfo": lambda i: SimpleNamespace(total=80 << 30),
                "nvmlSystemGetDriverVersion": lambda: text("580.1"),
            }
            return answers[name](*args)

        return call


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
