"""A subject for the checks of GPUs: a synthetic NVML, and a folder for the root of the file system."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from autotune.contract import Machine
from autotune.machine.checks.finding import Plan, Subject
from autotune.machine.fake_nvml import FakeNvml, FakeWorld
from autotune.machine.gpus import read_gpus, read_links
from autotune.machine.host import Host

VERSIONS = {"torch": "2.15.0", "cuda": "13.2", "cudnn": "9.26.0.51", "nccl": "2.30.7"}
GPU_CLASS, SWITCH_CLASS = "0x030200", "0x068000"


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeHost(Host):
    """With the distributions that it was given."""

    distributions: Mapping[str, str] = field(default_factory=dict)

    def version(self, distribution: str) -> str | None:
        return self.distributions.get(distribution)


def write(root: Path, path: str, text: str = "") -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def bare_root(root: Path, world: FakeWorld) -> Path:
    """Synthetic: the bus of a machine with these GPUs, a kernel that said nothing of them, and no IOMMU."""
    for gpu in world.gpus:
        for name, text in {"vendor": "0x10de", "class": GPU_CLASS, "numa_node": "0", "max_link_width": "16"}.items():
            write(root, f"sys/bus/pci/devices/{gpu.pci.lower()}/{name}", text)
    write(root, "sys/bus/pci/devices/0000:00:1f.0/vendor", "0x8086")
    write(root, "dev/kmsg", "6,1,0,-;Linux version 6.8.0")
    (root / "sys/kernel/iommu_groups").mkdir(parents=True, exist_ok=True)
    return root


def subject(
    world: FakeWorld,
    root: Path,
    *,
    plan: Plan | None = None,
    versions: Mapping[str, str] = VERSIONS,
    env: Mapping[str, str] | None = None,
    distributions: Mapping[str, str] | None = None,
    container: str | None = None,
    later: FakeWorld | None = None,
) -> Subject:
    """What read_machine would make of this machine; `later`: the world when the checks look, if it is another."""
    host = FakeHost(root=root, nvml=FakeNvml(world), env=env or {}, distributions=distributions or {})
    gpus = read_gpus(host)
    machine = Machine(
        hostname="h",
        cpu="c",
        n_cores=8,
        n_cores_host=8,
        ram_bytes=1 << 36,
        shm_bytes=None,
        gpus=gpus,
        gpu_links=read_links(gpus, host),
        driver=world.driver,
        versions=dict(versions),
        container=container,
    )
    now = FakeHost(root=root, nvml=FakeNvml(later or world), env=env or {}, distributions=distributions or {})
    return Subject(machine=machine, host=now, plan=plan or Plan())
