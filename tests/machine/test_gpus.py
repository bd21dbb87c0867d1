"""Facts of GPUs and their links, on synthetic machines; nvml_conformance.py says that the fake is like the real one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pynvml
import pytest

from autotune.contract import Gpu, GpuLink, Machine, read_json, write_json
from autotune.machine.fake_nvml import FakeNvml, FakeWorld
from autotune.machine.fake_worlds import SWITCH, healthy, healthy_world, mig, mismatch, not_supported_everywhere
from autotune.machine.gpus import PATHS, read_gpus, read_links
from autotune.machine.host import Host


def sysfs(root: Path, pci: str, **files: str) -> None:
    folder = root / "sys/bus/pci/devices" / pci
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")


def links(world: FakeWorld, root: Path = Path("/nowhere")) -> tuple[GpuLink, ...]:
    host = Host(root=root, nvml=FakeNvml(world), env={})
    return read_links(read_gpus(host), host)


def with_links(*nvlinks: tuple[str | None, ...] | None) -> FakeWorld:
    world = healthy_world(len(nvlinks))
    for i, ends in enumerate(nvlinks):
        world = world.changed(i, nvlinks=ends)
    return world


@pytest.mark.parametrize("as_bytes", [False, True])
def test_all_that_a_gpu_tells(as_bytes: bool, tmp_path: Path) -> None:
    sysfs(tmp_path, "0000:1b:00.0", numa_node="1")
    sysfs(tmp_path, "0000:2b:00.0", numa_node="-1")
    fake = FakeNvml(healthy_world(2).changed(1, pcie_gen=1, power_limit_w=500.0), as_bytes=as_bytes)
    common = {
        "name": "NVIDIA H100 80GB HBM3",
        "mem_bytes": 80 << 30,
        "capability": (9, 0),
        "pcie_gen_max": 5,
        "pcie_width": 16,
        "pcie_width_max": 16,
        "power_default_w": 700.0,
        "mig": False,
    }
    assert read_gpus(Host(root=tmp_path, nvml=fake)) == (
        Gpu(**common, index=0, uuid="GPU-0", pci="0000:1b:00.0", pcie_gen=5, numa_node=1, power_limit_w=700.0),
        Gpu(**common, index=1, uuid="GPU-1", pci="0000:2b:00.0", pcie_gen=1, numa_node=None, power_limit_w=500.0),
    )
    assert fake.open == 0


def test_what_a_gpu_does_not_tell_is_none(tmp_path: Path) -> None:
    host = Host(root=tmp_path, nvml=not_supported_everywhere(2))
    gpus = read_gpus(host)
    bare = [Gpu(index=i, uuid=f"GPU-{i}", name=g.name, mem_bytes=80 << 30, pci=g.pci) for i, g in enumerate(gpus)]
    assert list(gpus) == bare
    assert read_links(gpus, host) == (GpuLink(a="GPU-0", b="GPU-1"),)


READINGS = (
    "nvmlDeviceGetPciInfo",
    "nvmlDeviceGetEnforcedPowerLimit",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetCudaComputeCapability",
    "nvmlDeviceGetCurrPcieLinkWidth",
    "nvmlDeviceGetP2PStatus",
    "nvmlDeviceGetTopologyCommonAncestor",
    "nvmlDeviceGetNvLinkState",
    "nvmlDeviceGetNvLinkRemotePciInfo",
    "nvmlDeviceGetNvLinkRemoteDeviceType",
)


@pytest.mark.parametrize("error", ["NotSupported", "NoPermission", "FunctionNotFound", "GpuIsLost", "Unknown"])
@pytest.mark.parametrize("name", READINGS)
def test_no_reading_raises(name: str, error: str) -> None:
    world = replace(healthy_world(2), errors={name: error})
    with_none, whole = links(world), links(healthy_world(2))
    gpus = read_gpus(Host(nvml=FakeNvml(world)))
    assert len(gpus) == 2
    told = [gpus != read_gpus(Host(nvml=healthy(2))), with_none != whole]
    # A far end whose address is not told, or whose kind is not told and that sysfs does not have, counts as a switch.
    assert any(told) != name.startswith("nvmlDeviceGetNvLinkRemote")


@pytest.mark.parametrize("fail", ["nvmlInit", "nvmlDeviceGetCount"])
def test_no_nvml_is_no_gpu(fail: str) -> None:
    fake = FakeNvml(replace(healthy_world(2), errors={fail: "Unknown"}))
    assert read_gpus(Host(nvml=fake)) == ()
    assert fake.open == 0


def test_no_driver_is_no_gpu() -> None:
    assert read_gpus(Host(nvml=mismatch())) == ()
    assert read_links((), Host(nvml=mismatch())) == ()


def test_a_lost_gpu_is_left_out() -> None:
    host = Host(nvml=FakeNvml(healthy_world(2).changed(0, lost=True)))
    assert [g.index for g in read_gpus(host)] == [1]


def test_a_gpu_that_is_lost_between_two_looks_has_links_of_which_nothing_is_known() -> None:
    gpus = read_gpus(Host(nvml=healthy(3)))
    found = read_links(gpus, Host(nvml=FakeNvml(healthy_world(3).changed(2, lost=True))))
    assert [(k.a, k.b, k.p2p, k.n_nvlinks) for k in found] == [
        ("GPU-0", "GPU-1", True, 18),
        ("GPU-0", "GPU-2", None, None),
        ("GPU-1", "GPU-2", None, None),
    ]


def test_shutdown_may_fail() -> None:
    assert len(read_gpus(Host(nvml=FakeNvml(replace(healthy_world(2), errors={"nvmlShutdown": "Unknown"}))))) == 2


def test_a_domain_of_more_than_four_digits_is_kept() -> None:
    fake = FakeNvml(healthy_world(1).changed(0, pci="10000:E1:00.0"))
    assert [g.pci for g in read_gpus(Host(nvml=fake))] == ["10000:e1:00.0"]


@pytest.mark.parametrize(("level", "name"), PATHS.items())
def test_the_way_over_pcie(level: int, name: str) -> None:
    assert [k.path for k in links(replace(healthy_world(2), paths={(0, 1): level}))] == [name]


@pytest.mark.parametrize(("status", "p2p"), [(0, True), (1, False), (2, False), (4, False), (5, False), (6, None)])
def test_peer_access(status: int, p2p: bool | None) -> None:
    assert [k.p2p for k in links(replace(healthy_world(2), p2p={(0, 1): status}))] == [p2p]


A, B, C = "0000:1b:00.0", "0000:2b:00.0", "0000:3b:00.0"


def test_nvlinks_from_gpu_to_gpu_are_counted_to_each() -> None:
    # A pair with four links, one of them down, and a third GPU with one to each, as on some boards.
    world = with_links((B, B, B, None, C), (A, A, A, None, C), (A, B, None, None, None))
    assert [k.n_nvlinks for k in links(world)] == [3, 1, 1]


def test_a_gpu_without_a_bridge_has_no_nvlink_and_one_that_does_not_tell_is_unknown() -> None:
    assert [k.n_nvlinks for k in links(with_links((None,) * 4, (None,) * 4))] == [0]
    assert [k.n_nvlinks for k in links(with_links(None, None))] == [None]


def test_behind_a_switch_every_pair_has_all_links() -> None:
    assert [k.n_nvlinks for k in links(with_links((SWITCH,) * 6, (SWITCH,) * 6, (SWITCH,) * 5))] == [6, 5, 5]


def test_the_far_end_where_nvml_does_not_name_its_kind(tmp_path: Path) -> None:
    old = {"nvmlDeviceGetNvLinkRemoteDeviceType": "FunctionNotFound"}
    hidden = "0000:9b:00.0"  # a GPU of the host that this container was not given
    sysfs(tmp_path, hidden, **{"class": "0x030200"})
    sysfs(tmp_path, B, **{"class": "0x030200"})
    sysfs(tmp_path, A, **{"class": "0x030200"})
    sysfs(tmp_path, SWITCH, **{"class": "0x068000"})
    assert [k.n_nvlinks for k in links(replace(with_links((hidden,), (hidden,)), errors=old), tmp_path)] == [0]
    assert [k.n_nvlinks for k in links(replace(with_links((B, hidden), (A,)), errors=old), tmp_path)] == [1]
    assert [k.n_nvlinks for k in links(replace(with_links((SWITCH,), (SWITCH,)), errors=old), tmp_path)] == [1]
    unseen = "ffff:ff:00.0"  # as a virtual machine shows a switch that it was not given
    assert [k.n_nvlinks for k in links(replace(with_links((unseen,), (unseen,)), errors=old), tmp_path)] == [1]


def test_slices_have_no_peers() -> None:
    host = Host(nvml=mig())
    gpus = read_gpus(host)
    assert [g.mig for g in gpus] == [True, True]
    assert [(k.p2p, k.n_nvlinks) for k in read_links(gpus, host)] == [(False, None)]


def test_one_gpu_has_no_link() -> None:
    host = Host(nvml=healthy(1))
    assert read_links(read_gpus(host), host) == ()
    assert pynvml.NVML_P2P_CAPS_INDEX_READ == (0,), "why read_links does not use it"


def test_gpus_and_links_come_back_from_machine_json(tmp_path: Path) -> None:
    host = Host(root=tmp_path, nvml=healthy(2))
    gpus = read_gpus(host)
    machine = Machine(
        hostname="h",
        cpu="c",
        n_cores=1,
        n_cores_host=1,
        ram_bytes=1,
        shm_bytes=None,
        gpus=gpus,
        gpu_links=read_links(gpus, host),
    )
    write_json(tmp_path / "machine.json", machine)
    assert read_json(tmp_path / "machine.json", Machine) == machine
