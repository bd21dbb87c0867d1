"""The checks of GPUs on synthetic machines: each fault is found by its own check, and by no other."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from autotune.machine.checks import examine
from autotune.machine.checks.driver import BUILT_FOR, DRIVER, runs_on
from autotune.machine.checks.finding import Finding, Plan
from autotune.machine.checks.gpu import GPU
from autotune.machine.checks.links import LINKS
from autotune.machine.fake_nvml import FakeNvml, FakeProcess, FakeWorld
from autotune.machine.fake_worlds import (
    foreign_process,
    healthy_world,
    lost_in_mid_run,
    mig,
    mismatch,
    not_supported_everywhere,
    throttling,
)
from autotune.machine.gpus import read_gpus
from autotune.machine.host import Host
from tests.machine.gpu_subjects import GPU_CLASS, VERSIONS, bare_root, subject, write

ROWS = {**GPU, **LINKS}


def found(world: FakeWorld, root: Path, **more: Any) -> dict[str, Finding]:
    said = examine(subject(world, bare_root(root, world), **more))
    return {name: finding for name, finding in said.items() if name in ROWS}


def faults(said: dict[str, Finding]) -> dict[str, str]:
    return {name: f.verdict for name, f in said.items() if f.verdict in ("warn", "fail")}


def test_a_healthy_machine_raises_nothing(tmp_path: Path) -> None:
    said = found(healthy_world(4), tmp_path)
    assert {name: f.verdict for name, f in said.items()} == dict.fromkeys(
        ROWS.keys() - {"iommu", "gpus in container"}, "ok"
    )
    assert said["gpu topology"].says == "all pairs are equally near: 18 NVLinks"
    assert said["power limit"].evidence == ("GPU 0, 1, 2 and 3: 700 W of 700 W",)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Synthetic, and one thing is wrong: with a GPU, with the world, with a file below the root, or with the rest."""

    row: str
    verdict: str
    says: str
    n: int = 4
    gpu: dict[str, Any] = field(default_factory=dict)
    world: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    def found(self, root: Path) -> dict[str, Finding]:
        world = replace(healthy_world(self.n).changed(2 if self.n > 2 else 0, **self.gpu), **self.world)
        bare_root(root, world)
        for path, text in self.files.items():
            write(root, path, text)
        return {k: f for k, f in examine(subject(world, root, **self.more)).items() if k in ROWS}


BUS_2 = "sys/bus/pci/devices/0000:3b:00.0"
XID = "NVRM: Xid (PCI:0000:3b:00): {}, pid=77, name=python, Ch 00000008"
PAIRS = [(a, b) for a in range(4) for b in range(a + 1, 4)]
NO_NVLINK = {"gpus": tuple(replace(g, nvlinks=None) for g in healthy_world(4).gpus)}
NEAR_23 = {**NO_NVLINK, "paths": dict.fromkeys(PAIRS, 50) | {(2, 3): 10}}
SET_01 = {"plan": Plan(gpus=("GPU-0", "GPU-1"), n_ranks=2)}
FAULTS = {
    "driver too old": Fault(
        row="driver", verdict="fail", says="which needs 580", world={"driver": "570.1", "cuda": 12080}
    ),
    "torch without CUDA": Fault(
        row="driver", verdict="warn", says="without CUDA", more={"versions": {"torch": "2.15.0+cpu"}}
    ),
    "updated driver": Fault(
        row="gpu", verdict="fail", says="updated while", world={"errors": {"nvmlInit": "LibRmVersionMismatch"}}
    ),
    "no driver": Fault(
        row="gpu", verdict="warn", says="does not answer", world={"errors": {"nvmlInit": "LibraryNotFound"}}
    ),
    "one lost": Fault(row="gpu", verdict="warn", says="1 of 4 GPUs do not answer", gpu={"lost": True}),
    "one tells no memory": Fault(row="gpu", verdict="warn", says="1 of 4 GPUs do not tell", gpu={"mem_bytes": None}),
    "too old a GPU": Fault(
        row="gpu architecture", verdict="fail", says="GPU 2 (capability 6.1)", gpu={"capability": (6, 1)}
    ),
    "too new a GPU": Fault(
        row="gpu architecture",
        verdict="fail",
        says="GPU 2 (capability 12.0)",
        gpu={"capability": (12, 0)},
        more={"versions": {**VERSIONS, "cuda": "12.6"}},
    ),
    "preloaded": Fault(
        row="nccl and cudnn",
        verdict="warn",
        says="/opt/libnccl.so.2",
        more={"env": {"LD_PRELOAD": "/opt/libnccl.so.2"}},
    ),
    "two NCCL": Fault(
        row="nccl and cudnn",
        verdict="warn",
        says="nvidia-nccl-cu12 2.21.5 and nvidia-nccl-cu13 2.30.7",
        more={"distributions": {"nvidia-nccl-cu12": "2.21.5", "nvidia-nccl-cu13": "2.30.7"}},
    ),
    "AMP gives NaN": Fault(
        row="precision",
        verdict="warn",
        says="without AMP",
        gpu={"name": "NVIDIA GeForce GTX 1660 Ti", "capability": (7, 5)},
        more={"plan": Plan(half=True)},
    ),
    "no peer access": Fault(row="peer access", verdict="warn", says="GPU 1-2 cannot", world={"p2p": {(1, 2): 5}}),
    "distant GPUs chosen": Fault(
        row="gpu topology", verdict="warn", says="GPU 2 and 3 are nearer", world=NEAR_23, more=SET_01
    ),
    "half the lanes": Fault(row="pcie link", verdict="warn", says="8 of 16", gpu={"pcie_width": 8}),
    "a slot with half the lanes": Fault(
        row="pcie link", verdict="warn", says="8 of 16", gpu={"pcie_width": 8, "pcie_width_max": 8}
    ),
    "hardware slow-down": Fault(
        row="clock slow-down", verdict="warn", says="GPU 2 is slowed down", gpu={"reasons": 0x8}
    ),
    "power brake": Fault(row="clock slow-down", verdict="warn", says="GPU 2 is slowed down", gpu={"reasons": 0x80}),
    "too hot": Fault(row="clock slow-down", verdict="warn", says="GPU 2 is slowed down", gpu={"reasons": 0x40}),
    "hot": Fault(row="clock slow-down", verdict="warn", says="GPU 2 is slowed down", gpu={"reasons": 0x20 | 0x1}),
    "memory errors": Fault(
        row="gpu memory errors", verdict="fail", says="GPU 2: 3 uncorrectable", gpu={"ecc_uncorrected": 3}
    ),
    "row pending": Fault(
        row="gpu memory errors", verdict="warn", says="waits for a reset", gpu={"remapped": (0, 1, 1, 0)}
    ),
    "row failed": Fault(row="gpu memory errors", verdict="fail", says="could not be", gpu={"remapped": (0, 1, 0, 1)}),
    "pages pending": Fault(row="gpu memory errors", verdict="warn", says="retired", gpu={"retired_pending": True}),
    "asks for a reset": Fault(row="gpu memory errors", verdict="fail", says="asks for a reset", gpu={"recovery": 1}),
    "Xid": Fault(
        row="xid", verdict="warn", says="GPU 2: Xid 79 (fallen", files={"dev/kmsg": f"3,9,9,-;{XID.format(79)}"}
    ),
    "not persistent": Fault(row="persistence mode", verdict="warn", says="forgets GPU 2", gpu={"persistence": False}),
    "somebody computes": Fault(
        row="other users",
        verdict="fail",
        says="somebody else computes on GPU 2",
        gpu={"compute": (FakeProcess(pid=9),)},
    ),
    "somebody by MPS": Fault(
        row="other users", verdict="fail", says="somebody else computes on GPU 2", gpu={"mps": (FakeProcess(pid=9),)}
    ),
    "somebody in another container": Fault(
        row="other users", verdict="warn", says="seems to use GPU 2", gpu={"mem_used_bytes": 9 << 30}
    ),
    "busy": Fault(row="other users", verdict="warn", says="seems to use GPU 2", gpu={"util_percent": 60}),
    "closed": Fault(row="gpu mode", verdict="fail", says="nobody may compute on GPU 2", gpu={"compute_mode": 2}),
    "slices": Fault(row="gpu mode", verdict="fail", says="slices do not train together", gpu={"mig": True}),
    "one slice": Fault(row="gpu mode", verdict="warn", says="slices", n=1, gpu={"mig": True}),
    "virtual": Fault(row="gpu mode", verdict="warn", says="a virtual GPU", gpu={"virtualization": 2}),
    "IOMMU": Fault(
        row="iommu",
        verdict="warn",
        says="translates what GPU 0, 1, 2 and 3",
        world=NO_NVLINK,
        files={
            "sys/kernel/iommu_groups/7/type": "DMA",
            **{f"sys/bus/pci/devices/{g.pci}/iommu_group/type": "DMA-FQ" for g in healthy_world(4).gpus},
        },
    ),
    "one container a GPU": Fault(
        row="gpus in container",
        verdict="warn",
        says="4 of the host's 5 GPUs",
        files={
            "sys/bus/pci/devices/0000:9b:00.0/vendor": "0x10de",
            "sys/bus/pci/devices/0000:9b:00.0/class": GPU_CLASS,
        },
        more={"container": "docker", "plan": Plan(n_nodes=2)},
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_by_its_own_check_and_no_other(name: str, tmp_path: Path) -> None:
    fault = FAULTS[name]
    said = fault.found(tmp_path)
    assert faults(said) == {fault.row: fault.verdict}
    assert fault.says in said[fault.row].says
    assert said[fault.row].remedy or fault.gpu == {"mem_bytes": None}, "nothing can be done about that one"


def test_every_check_has_a_fault_that_it_finds() -> None:
    assert {f.row for f in FAULTS.values()} == ROWS.keys() - {"power limit"}, "a power limit is only reported"


NOTES: dict[str, tuple[str, Fault]] = {
    "limited": ("info", Fault(row="power limit", verdict="info", says="GPU 2 is below", gpu={"power_limit_w": 400.0})),
    "just limited": ("ok", Fault(row="power limit", verdict="ok", says="default", gpu={"power_limit_w": 640.0})),
    "power cap": ("ok", Fault(row="clock slow-down", verdict="ok", says="nothing", gpu={"reasons": 0x4 | 0x2})),
    "no tensor cores": (
        "info",
        Fault(
            row="precision",
            verdict="info",
            says="no tensor cores",
            gpu={"capability": (6, 1)},
            more={"versions": {**VERSIONS, "cuda": "12.6"}},
        ),
    ),
    "no bf16": ("info", Fault(row="precision", verdict="info", says="bf16 does not", gpu={"capability": (7, 5)})),
    "AMP not asked": ("info", Fault(row="precision", verdict="info", says="without AMP", gpu={"name": "NVIDIA T1000"})),
    "a screen": (
        "info",
        Fault(row="other users", verdict="info", says="draws", gpu={"graphics": (FakeProcess(pid=5),)}),
    ),
    "a busy screen": (
        "info",
        Fault(
            row="other users",
            verdict="info",
            says="drawn by 5, 2.0 GiB in use, busy 9 %",
            gpu={"graphics": (FakeProcess(pid=5),), "mem_used_bytes": 2 << 30, "util_percent": 9},
        ),
    ),
    "exclusive": ("ok", Fault(row="gpu mode", verdict="ok", says="whole", gpu={"compute_mode": 3})),
    "confidential": ("info", Fault(row="gpu mode", verdict="info", says="encrypted", world={"confidential": 1})),
    "passed through": ("ok", Fault(row="gpu mode", verdict="ok", says="whole", gpu={"virtualization": 1})),
    "idle link": ("ok", Fault(row="pcie link", verdict="ok", says="lanes", gpu={"pcie_gen": 1})),
    "narrow by nature": (
        "ok",
        Fault(
            row="pcie link",
            verdict="ok",
            says="lanes",
            gpu={"pcie_width": 8, "pcie_width_max": 8},
            files={f"{BUS_2}/max_link_width": "8"},
        ),
    ),
    "a program's Xid": (
        "info",
        Fault(row="xid", verdict="info", says="1 Xid", files={"dev/kmsg": f"3,9,9,-;{XID.format(31)}"}),
    ),
    "another's Xid": (
        "ok",
        Fault(
            row="xid", verdict="ok", says="no Xid", files={"dev/kmsg": f"3,9,9,-;{XID.format(79)}".replace("3b", "9b")}
        ),
    ),
    "mixed pairs": (
        "info",
        Fault(
            row="gpu topology",
            verdict="info",
            says="SYS, the link between two CPUs",
            world={**NO_NVLINK, "paths": dict.fromkeys(PAIRS, 50) | {(0, 1): 10, (2, 3): 10}},
        ),
    ),
    "far apart": (
        "info",
        Fault(row="gpu topology", verdict="info", says="GPU 0-1", world=NEAR_23 | {"paths": {(0, 1): 50}}, n=2),
    ),
    "passing IOMMU": (
        "ok",
        Fault(
            row="iommu",
            verdict="ok",
            says="pass as they are",
            world=NO_NVLINK,
            files={
                "sys/kernel/iommu_groups/7/type": "identity",
                **{f"sys/bus/pci/devices/{g.pci}/iommu_group/type": "identity" for g in healthy_world(4).gpus},
            },
        ),
    ),
    "no IOMMU": ("ok", Fault(row="iommu", verdict="ok", says="no IOMMU", world=NO_NVLINK)),
    "all of the host": (
        "ok",
        Fault(row="gpus in container", verdict="ok", says="all GPUs", more={"container": "docker"}),
    ),
    "a library that is not taken": (
        "info",
        Fault(
            row="nccl and cudnn",
            verdict="info",
            says="LD_LIBRARY_PATH",
            files={"opt/nccl/libnccl.so.2": ""},
            more={"env": {"LD_LIBRARY_PATH": "/nowhere:/opt/nccl"}},
        ),
    ),
    "plugins are no NCCL": (
        "ok",
        Fault(
            row="nccl and cudnn",
            verdict="ok",
            says="nothing takes",
            files={"opt/nccl/libnccl-net.so": ""},
            more={"env": {"LD_LIBRARY_PATH": "/opt/nccl"}},
        ),
    ),
    "older minor": ("ok", Fault(row="driver", verdict="ok", says="CUDA 13.0", world={"driver": "580.1"})),
    "forward compatibility": ("ok", Fault(row="driver", verdict="ok", says="570", world={"driver": "570.1"})),
}


@pytest.mark.parametrize("name", NOTES)
def test_what_is_no_fault(name: str, tmp_path: Path) -> None:
    verdict, note = NOTES[name]
    said = note.found(tmp_path)
    assert faults(said) == {}
    assert said[note.row].verdict == verdict
    assert note.says in " ".join((said[note.row].says, *said[note.row].evidence))


def test_what_cannot_be_read_is_unknown_and_never_ok(tmp_path: Path) -> None:
    world = not_supported_everywhere(2).world(0.0)
    root = bare_root(tmp_path, world)
    (root / "dev/kmsg").unlink()
    shutil.rmtree(root / "sys/kernel")
    said = {k: f for k, f in examine(subject(replace(world, driver=None), root)).items() if k in ROWS}
    known = {"gpu": "ok", "nccl and cudnn": "ok"}  # which need nothing of what is missing
    assert {k: f.verdict for k, f in said.items()} == dict.fromkeys(
        ROWS.keys() - {"gpus in container"}, "unknown"
    ) | known
    assert said["power limit"].says == "GPU 0 and 1 do not tell the power limit"


def test_the_hosts_bus_that_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    world = healthy_world(2)
    root = bare_root(tmp_path, world)
    shutil.rmtree(root / "sys/bus")
    assert examine(subject(world, root, container="docker"))["gpus in container"].verdict == "unknown"


READ_BY = {
    "driver": "nvmlSystemGetCudaDriverVersion_v2",
    "clock slow-down": "nvmlDeviceGetCurrentClocksEventReasons",
    "persistence mode": "nvmlDeviceGetPersistenceMode",
    "gpu mode": "nvmlDeviceGetComputeMode",
}


@pytest.mark.parametrize("error", ["NotSupported", "NoPermission", "FunctionNotFound", "GpuIsLost"])
@pytest.mark.parametrize("row", READ_BY)
def test_no_error_of_nvml_ends_a_check(row: str, error: str, tmp_path: Path) -> None:
    later = replace(healthy_world(2), errors={READ_BY[row]: error})
    said = found(healthy_world(2), tmp_path, later=later)
    assert said[row].verdict == ("ok" if row == "driver" else "unknown"), "a driver's own version says it too"
    assert faults(said) == {}


def test_a_gpu_that_is_lost_after_it_was_seen(tmp_path: Path) -> None:
    said = found(healthy_world(2), tmp_path, later=healthy_world(2).changed(1, lost=True))
    assert said["clock slow-down"].verdict == said["persistence mode"].verdict == "unknown"
    assert said["clock slow-down"].says.startswith("GPU 1 does not tell")


def test_only_the_gpus_of_the_job_are_judged(tmp_path: Path) -> None:
    world = healthy_world(4).changed(3, reasons=0x8, persistence=False, pcie_width=8)
    assert faults(found(world, tmp_path, plan=Plan(gpus=("GPU-0", "GPU-1"), n_ranks=2))) == {}
    assert found(world, tmp_path)["clock slow-down"].verdict == "warn", "without a job: all"


def test_a_job_on_the_cpu_beside_gpus(tmp_path: Path) -> None:
    said = found(healthy_world(2).changed(0, reasons=0x8), tmp_path, plan=Plan(data="/data/images"))
    assert {k: f.verdict for k, f in said.items()} == {"gpu": "info"}
    assert "GPU 0 and 1 could be used" in said["gpu"].says


@pytest.mark.parametrize("world", [FakeWorld(), FakeWorld(errors={"nvmlInit": "LibraryNotFound"})])
def test_no_gpu_is_one_row_and_no_fault(world: FakeWorld, tmp_path: Path) -> None:
    said = found(world, tmp_path)
    assert {k: (f.verdict, f.says) for k, f in said.items()} == {
        "gpu": ("info", "no NVIDIA GPU: the training runs on the CPU")
    }


def test_nvml_that_does_not_count(tmp_path: Path) -> None:
    said = found(FakeWorld(errors={"nvmlDeviceGetCount": "Unknown"}), tmp_path)
    assert {k: f.verdict for k, f in said.items()} == {"gpu": "unknown"}


SCENARIOS: dict[str, tuple[Callable[[], FakeNvml], dict[str, str]]] = {
    "throttling": (lambda: throttling(since_s=0.0), {"clock slow-down": "warn", "other users": "warn"}),
    "lost": (lambda: lost_in_mid_run(since_s=0.0), {"gpu": "warn", "other users": "warn"}),
    "slices": (mig, {"gpu mode": "fail"}),
    "foreign process": (foreign_process, {"other users": "fail"}),
    "updated driver": (mismatch, {"gpu": "fail"}),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_synthetic_scenarios_are_seen(name: str, tmp_path: Path) -> None:
    make, expected = SCENARIOS[name]  # those that are busy look as if somebody else computed
    assert faults(found(make().world(0.0), tmp_path)) == expected


def test_the_remedy_names_gpus_as_the_user_must(tmp_path: Path) -> None:
    fault = FAULTS["distant GPUs chosen"]
    assert fault.found(tmp_path)["gpu topology"].remedy == "--gpus 2,3"
    hidden = replace(fault, more={**fault.more, "env": {"CUDA_VISIBLE_DEVICES": "3,2,1,0"}})
    assert hidden.found(tmp_path)["gpu topology"].remedy == "CUDA_VISIBLE_DEVICES=GPU-2,GPU-3"


def test_nvlinks_decide_before_pcie(tmp_path: Path) -> None:
    ends = [("0000:3b:00.0",), (None,), ("0000:1b:00.0",), (None,)]  # a bridge between the first and the third
    world = replace(healthy_world(4), paths={(0, 1): 10})
    for i, nvlinks in enumerate(ends):
        world = world.changed(i, nvlinks=nvlinks)
    said = found(world, tmp_path, **SET_01)["gpu topology"]
    assert (said.verdict, said.remedy) == ("warn", "--gpus 0,2")
    assert said.says == ("GPU 0 and 2 are nearer to each other (1 NVLink) than GPU 0 and 1 (PIX, one PCIe switch)")


def test_the_table_of_wheels_is_that_of_the_installed_torch() -> None:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / "cuda/__init__.py").read_text(encoding="utf-8"))
    tables = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and node.target.id == "PYTORCH_RELEASES_CODE_CC"
        and node.value is not None
    ]
    assert tables == [{cuda: {host: set(codes) for host, codes in by.items()} for cuda, by in BUILT_FOR.items()}]


@pytest.mark.parametrize(
    ("capability", "cuda", "runs"),
    [
        ((7, 0), "12.6", True),
        ((7, 0), "13.2", False),
        ((8, 9), "13.2", True),  # code for 8.6
        ((9, 0), "12.6", True),
        ((10, 3), "13.0", True),
        ((12, 1), "13.2", True),
        ((6, 1), "12.6", True),
        ((5, 2), "12.6", True),
    ],
)
def test_which_gpu_runs_which_wheel(capability: tuple[int, int], cuda: str, runs: bool) -> None:
    gpu = read_gpus(Host(nvml=FakeNvml(healthy_world(1).changed(0, capability=capability))))[0]
    assert runs_on(gpu, BUILT_FOR[cuda]["x86_64"]) is runs


def test_a_wheel_that_is_not_known(tmp_path: Path) -> None:
    said = found(healthy_world(1), tmp_path, versions={**VERSIONS, "cuda": "14.0"})
    assert said["gpu architecture"].verdict == "unknown"
    assert said["driver"].verdict == "unknown"


def test_the_remedy_for_an_old_gpu_is_the_older_wheel(tmp_path: Path) -> None:
    pascal = healthy_world(1).changed(0, capability=(6, 1))
    assert found(pascal, tmp_path)["gpu architecture"].remedy.startswith("install torch's build for CUDA 12.6 ")
    kepler = healthy_world(1).changed(0, capability=(3, 7))
    assert "older torch" in found(kepler, tmp_path)["gpu architecture"].remedy


def test_an_old_driver_is_told_of_the_wheel_that_it_can_drive(tmp_path: Path) -> None:
    for driver, cuda, has_wheel in (("535.1", 12020, True), ("470.1", 11040, False)):
        said = found(replace(healthy_world(1), driver=driver, cuda=cuda), tmp_path)["driver"]
        assert said.verdict == "fail"
        assert ("CUDA 12.6" in said.remedy) is has_wheel


def test_the_kernels_log_is_read_to_its_end_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "kmsg")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kmsg").symlink_to(tmp_path / "kmsg")
    with (tmp_path / "kmsg").open("r+b", buffering=0) as pipe:  # open at both ends: empty, but not at its end
        pipe.write(b"6,1,0,-;one\n6,2,0,-;two \xff\n")
        assert Host(root=tmp_path).kernel_log() == "6,1,0,-;one\n6,2,0,-;two \ufffd\n"
    assert Host(root=tmp_path / "none").kernel_log() is None


def test_each_check_is_in_one_table() -> None:
    assert len(GPU) + len(LINKS) == len(ROWS)
    assert DRIVER.items() <= GPU.items()
