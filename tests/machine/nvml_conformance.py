"""What must be true of whatever we take for NVML? Run against the fake, pynvml over a fake library, and a real GPU.

`python -m tests.machine.nvml_conformance` runs it against pynvml; LD_LIBRARY_PATH says over which library.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from autotune.machine.fake_nvml import FakeProcess
from autotune.machine.fake_worlds import healthy_world
from autotune.machine.gpus import read_gpus, read_links
from autotune.machine.host import Host
from autotune.machine.nvml import read_driver, used_memory, users

SYNTHETIC_C = Path(__file__).with_name("fake_nvml.c")
THEIRS = (FakeProcess(pid=4321, mem_bytes=20 << 30), FakeProcess(pid=4322))
MACHINE = healthy_world(2).changed(1, util_percent=None, compute=THEIRS)
"""What fake_nvml.c answers."""

NUMBERS: dict[str, tuple[tuple[int, ...], int, int]] = {
    "nvmlDeviceGetPowerUsage": ((), 1_000, 3_000_000),
    "nvmlDeviceGetEnforcedPowerLimit": ((), 1_000, 3_000_000),
    "nvmlDeviceGetPowerManagementDefaultLimit": ((), 1_000, 3_000_000),
    "nvmlDeviceGetTotalEnergyConsumption": ((), 0, 2**63),
    "nvmlDeviceGetClockInfo": ((1,), 0, 20_000),
    "nvmlDeviceGetMaxClockInfo": ((2,), 1, 20_000),
    "nvmlDeviceGetCurrentClocksEventReasons": ((), 0, 2**12),
    "nvmlDeviceGetTemperature": ((0,), 1, 120),
    "nvmlDeviceGetCurrPcieLinkGeneration": ((), 1, 8),
    "nvmlDeviceGetMaxPcieLinkGeneration": ((), 1, 8),
    "nvmlDeviceGetCurrPcieLinkWidth": ((), 1, 32),
    "nvmlDeviceGetMaxPcieLinkWidth": ((), 1, 32),
    "nvmlDeviceGetComputeMode": ((), 0, 3),
    "nvmlDeviceGetPersistenceMode": ((), 0, 1),
    "nvmlDeviceGetTotalEccErrors": ((1, 0), 0, 2**63),
    "nvmlDeviceGetRetiredPagesPendingStatus": ((), 0, 1),
    "nvmlDeviceGetVirtualizationMode": ((), 0, 8),
}
"""Function -> what it takes after the handle, and from where to where its number must lie."""
LISTS = {
    "nvmlDeviceGetCudaComputeCapability": 2,
    "nvmlDeviceGetMigMode": 2,
    "nvmlDeviceGetRemappedRows": 4,
}
PROCESSES = ("Compute", "Graphics", "MPSCompute")


@contextmanager
def first(nvml: Any) -> Any:
    nvml.nvmlInit()
    try:
        yield nvml.nvmlDeviceGetHandleByIndex(0)
    finally:
        nvml.nvmlShutdown()


def attempt(nvml: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    """What a function answers; the name of the error's class where it raises."""
    try:
        return getattr(nvml, name)(*args, **kwargs)
    except nvml.NVMLError as e:
        return type(e).__name__


def nothing_answers_before_init(nvml: Any) -> None:
    for name in ("nvmlDeviceGetCount", "nvmlSystemGetDriverVersion", "nvmlShutdown"):
        assert attempt(nvml, name) == "NVMLError_Uninitialized", name


def init_nests(nvml: Any) -> None:
    nvml.nvmlInit()
    nvml.nvmlInit()
    nvml.nvmlShutdown()
    assert nvml.nvmlDeviceGetCount() >= 1
    nvml.nvmlShutdown()
    assert attempt(nvml, "nvmlDeviceGetCount") == "NVMLError_Uninitialized"


def errors_have_classes_and_codes(nvml: Any) -> None:
    for name, code in (("NotSupported", 3), ("GpuIsLost", 15), ("LibRmVersionMismatch", 18), ("FunctionNotFound", 13)):
        kind = getattr(nvml, f"NVMLError_{name}")
        assert issubclass(kind, nvml.NVMLError)
        assert issubclass(kind, Exception)
        assert kind().value == code


def a_gpu_is_found_by_index_and_by_uuid(nvml: Any) -> None:
    with first(nvml) as handle:
        uuid = nvml.nvmlDeviceGetUUID(handle)
        assert isinstance(uuid, str)
        assert nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByUUID(uuid)) == uuid
        assert nvml.nvmlDeviceGetName(handle)
        nobody = attempt(nvml, "nvmlDeviceGetHandleByUUID", "GPU-00000000-0000-0000-0000-000000000000")
        assert nobody in ("NVMLError_NotFound", "NVMLError_InvalidArgument")
        assert attempt(nvml, "nvmlDeviceGetHandleByIndex", 99) == "NVMLError_InvalidArgument"


def numbers_are_whole_and_have_their_units(nvml: Any) -> None:
    with first(nvml) as handle:
        for name, (args, low, high) in NUMBERS.items():
            found = attempt(nvml, name, handle, *args)
            assert isinstance(found, str) or (isinstance(found, int) and low <= found <= high), (name, found)


def lists_have_their_length(nvml: Any) -> None:
    with first(nvml) as handle:
        for name, n in LISTS.items():
            found = attempt(nvml, name, handle)
            assert isinstance(found, str) or len(found) == n, (name, found)


def utilisation_is_in_percent(nvml: Any) -> None:
    with first(nvml) as handle:
        found = attempt(nvml, "nvmlDeviceGetUtilizationRates", handle)
        assert isinstance(found, str) or (0 <= found.gpu <= 100 and 0 <= found.memory <= 100)


def memory_adds_up_in_both_versions(nvml: Any) -> None:
    with first(nvml) as handle:
        one = nvml.nvmlDeviceGetMemoryInfo(handle)
        two = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
        assert one.total == two.total == one.used + one.free
        assert two.total == two.used + two.free + two.reserved


def processes_have_a_pid_and_perhaps_a_size(nvml: Any) -> None:
    with first(nvml) as handle:
        for kind in PROCESSES:
            found = attempt(nvml, f"nvmlDeviceGet{kind}RunningProcesses", handle)
            for p in () if isinstance(found, str) else found:
                assert p.pid > 0
                assert p.usedGpuMemory is None or p.usedGpuMemory >= 0


def an_address_has_eight_digits_of_domain(nvml: Any) -> None:
    with first(nvml) as handle:
        busid = nvml.nvmlDeviceGetPciInfo(handle).busId
        busid = busid.decode() if isinstance(busid, bytes) else busid
        assert [len(part) for part in busid.split(":")] == [8, 2, 4]


def each_field_has_a_status_of_its_own(nvml: Any) -> None:
    with first(nvml) as handle:
        ids = [nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, 99_999]
        known, nonsense = nvml.nvmlDeviceGetFieldValues(handle, ids)
        assert [known.fieldId, nonsense.fieldId] == ids
        assert known.nvmlReturn != nvml.NVML_SUCCESS or 0 <= known.value.uiVal <= 7
        assert nonsense.nvmlReturn != nvml.NVML_SUCCESS


def the_constant_for_peer_reads_cannot_be_used(nvml: Any) -> None:
    with first(nvml) as handle, pytest.raises(ctypes.ArgumentError):
        nvml.nvmlDeviceGetP2PStatus(handle, handle, nvml.NVML_P2P_CAPS_INDEX_READ)


def a_link_too_many_is_refused(nvml: Any) -> None:
    with first(nvml) as handle:
        refused = ("NVMLError_InvalidArgument", "NVMLError_NotSupported")
        assert attempt(nvml, "nvmlDeviceGetNvLinkState", handle, 99) in refused


def what_the_module_does_not_have_is_no_attribute(nvml: Any) -> None:
    assert not hasattr(nvml, "nvmlDeviceGetMemoryInfo_v2"), "KNOBS 7"


def our_readings_answer(nvml: Any) -> None:
    host = Host(nvml=nvml)
    gpus = read_gpus(host)
    uuids = [g.uuid for g in gpus]
    assert gpus
    assert read_driver(nvml)
    assert all(g.mem_bytes > 1 << 30 and g.capability and g.capability >= (5, 0) and g.pci for g in gpus)
    assert len(read_links(gpus, host)) == len(gpus) * (len(gpus) - 1) // 2
    assert list(used_memory(uuids, nvml)) == uuids
    assert set(users(uuids, nvml)) <= set(uuids)
    assert attempt(nvml, "nvmlDeviceGetCount") == "NVMLError_Uninitialized", "every session was closed"


CHECKS: dict[str, Callable[[Any], None]] = {
    f.__name__: f
    for f in (
        nothing_answers_before_init,
        init_nests,
        errors_have_classes_and_codes,
        a_gpu_is_found_by_index_and_by_uuid,
        numbers_are_whole_and_have_their_units,
        lists_have_their_length,
        utilisation_is_in_percent,
        memory_adds_up_in_both_versions,
        processes_have_a_pid_and_perhaps_a_size,
        an_address_has_eight_digits_of_domain,
        each_field_has_a_status_of_its_own,
        the_constant_for_peer_reads_cannot_be_used,
        a_link_too_many_is_refused,
        what_the_module_does_not_have_is_no_attribute,
        our_readings_answer,
    )
}


def snapshot(nvml: Any) -> dict[str, Any]:
    """Everything that two libraries of the same machine must agree on."""
    host, said = Host(root=Path("/nowhere"), nvml=nvml), {}
    gpus = read_gpus(host)
    said["ours"] = [[asdict(g) for g in gpus], [asdict(k) for k in read_links(gpus, host)]]
    nvml.nvmlInit()
    for name in ("nvmlSystemGetDriverVersion", "nvmlSystemGetCudaDriverVersion_v2", "nvmlDeviceGetCount"):
        said[name] = attempt(nvml, name)
    said["confidential"] = nvml.nvmlSystemGetConfComputeState().ccFeature
    handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    for i, handle in enumerate(handles):
        for name, (args, _, _) in NUMBERS.items():
            said[f"{i} {name}"] = attempt(nvml, name, handle, *args)
        for name in LISTS:
            said[f"{i} {name}"] = list(attempt(nvml, name, handle))
        for kind in PROCESSES:
            running = attempt(nvml, f"nvmlDeviceGet{kind}RunningProcesses", handle)
            said[f"{i} {kind}"] = [[p.pid, p.usedGpuMemory] for p in running]
        used = attempt(nvml, "nvmlDeviceGetUtilizationRates", handle)
        said[f"{i} utilisation"] = used if isinstance(used, str) else [used.gpu, used.memory]
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        said[f"{i} memory"] = [memory.total, memory.used, memory.free]
        said[f"{i} links"] = [attempt(nvml, "nvmlDeviceGetNvLinkState", handle, link) for link in range(20)]
        said[f"{i} unknown"] = attempt(nvml, "nvmlDeviceGetViolationStatus", handle, 0)
    for status in range(5):
        said[f"p2p {status}"] = attempt(nvml, "nvmlDeviceGetP2PStatus", handles[0], handles[1], status)
    nvml.nvmlShutdown()
    return said


def build(folder: Path) -> dict[str, str]:
    """Compile the fake library into a folder; the environment in which a process loads it."""
    gcc = shutil.which("gcc")
    assert gcc, "gcc is needed to build the fake libnvidia-ml.so.1 (Debian: apt-get install gcc libc6-dev)"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror"]
    subprocess.run([gcc, *flags, "-o", str(folder / "libnvidia-ml.so.1"), str(SYNTHETIC_C)], check=True)
    return {**os.environ, "LD_LIBRARY_PATH": str(folder)}


def main() -> None:
    import pynvml

    failed = {}
    for name, check in CHECKS.items():
        try:
            check(pynvml)
        except BaseException:
            failed[name] = traceback.format_exc()
    json.dump({"ran": list(CHECKS), "failed": failed, "snapshot": snapshot(pynvml)}, sys.stdout)


if __name__ == "__main__":
    main()
