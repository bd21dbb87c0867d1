"""The fake of NVML, pynvml over a library of our own, and a real GPU: one suite for all three."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pynvml
import pytest

from autotune.machine.checks import examine
from autotune.machine.checks.finding import Subject
from autotune.machine.facts import read_machine
from autotune.machine.fake_nvml import FakeNvml
from autotune.machine.fake_worlds import healthy, healthy_world
from tests.machine.nvml_conformance import CHECKS, MACHINE, build, snapshot

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of a process that finds the fake libnvidia-ml.so.1."""
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="module")
def over_c(library: dict[str, str]) -> dict[str, Any]:
    """What the suite says of pynvml over the fake library."""
    argv = [sys.executable, "-m", "tests.machine.nvml_conformance"]
    done = subprocess.run(argv, env=library, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.mark.parametrize("name", CHECKS)
def test_the_fake(name: str) -> None:
    for world in (healthy_world(1), healthy_world(2), healthy_world(2, busy=True), MACHINE):
        CHECKS[name](FakeNvml(world))


@pytest.mark.parametrize("name", CHECKS)
def test_pynvml_over_a_library_of_ours(name: str, over_c: dict[str, Any]) -> None:
    assert name in over_c["ran"]
    assert name not in over_c["failed"], over_c["failed"][name]


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHECKS)
def test_pynvml_over_a_real_gpu(name: str) -> None:
    CHECKS[name](pynvml)


@pytest.mark.gpu
def test_the_checks_on_a_real_gpu() -> None:
    said = examine(Subject(machine=read_machine()))
    fit = {name: said[name].verdict for name in ("gpu", "driver", "gpu architecture", "nccl and cudnn", "precision")}
    assert fit == dict.fromkeys(fit, "ok"), said


def test_the_fake_says_of_a_machine_what_pynvml_says_of_it(over_c: dict[str, Any]) -> None:
    ours = json.loads(json.dumps(snapshot(FakeNvml(MACHINE))))
    assert ours == over_c["snapshot"]
    assert ours["1 utilisation"] == "NVMLError_NotSupported"
    assert ours["1 unknown"] == "NVMLError_FunctionNotFound"
    assert ours["1 Compute"] == [[4321, 20 << 30], [4322, None]]


class WrongNvml:
    """Minus one to every question, and every error is an error of ours."""

    NVMLError = NVMLError_NotSupported = pynvml.NVMLError

    def __getattr__(self, name: str) -> Any:
        return KeyError if name.startswith("NVMLError_") else lambda *args, **kwargs: -1


@pytest.mark.parametrize("name", CHECKS)
def test_the_suite_can_fail(name: str) -> None:
    with pytest.raises((AssertionError, TypeError, AttributeError, pytest.fail.Exception)):
        CHECKS[name](WrongNvml())


def test_a_process_with_that_library_sees_its_gpus(library: dict[str, str]) -> None:
    code = (
        "from autotune.machine.facts import describe, read_machine\n"
        "machine = read_machine()\n"
        "print(describe(machine), machine.driver, *(g.pci for g in machine.gpus), machine.gpu_links[0].n_nvlinks)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=library, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "2 x H100 80GB 580.95.05 0000:1b:00.0 0000:2b:00.0 18", done.stderr


def test_the_checks_over_that_library(library: dict[str, str]) -> None:
    code = (
        "from autotune.machine.checks import examine\n"
        "from autotune.machine.facts import read_machine\n"
        "from autotune.machine.checks.finding import Subject\n"
        "for name, finding in examine(Subject(machine=read_machine())).items():\n"
        "    print(name, finding.verdict, *finding.evidence, sep='|')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=library, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    said = {row[0]: row[1:] for row in (line.split("|") for line in done.stdout.splitlines())}
    assert said["gpu"] == ["ok", "GPU 0 and 1: NVIDIA H100 80GB HBM3, 80 GiB"]
    assert said["other users"] == ["fail", "GPU 1: processes 4321, 4322"]
    assert said["clock slow-down"][0] == said["gpu memory errors"][0] == said["gpu mode"][0] == "ok"
    assert said["gpu topology"] == ["ok", "GPU 0-1: 18 NVLinks"]


def test_time_passes_on_the_fakes_own_clock_or_on_one_that_is_given() -> None:
    own, given = healthy(1), healthy(1, clock=lambda: 2.0)
    for fake in (own, given):
        fake.nvmlInit()
    handle = own.nvmlDeviceGetHandleByIndex(0)
    before = own.nvmlDeviceGetTotalEnergyConsumption(handle)
    own.sleep(2.0)
    assert own.nvmlDeviceGetTotalEnergyConsumption(handle) - before == 140_000, "70 W for two seconds"
    assert given.nvmlDeviceGetTotalEnergyConsumption(handle) - before == 140_000
