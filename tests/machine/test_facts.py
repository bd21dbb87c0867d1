from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from autotune.contract import Gpu, Machine, Mount, from_dict, to_dict
from autotune.errors import InputError
from autotune.machine.facts import changes, describe, fingerprint, read_machine, resolve_gpus
from autotune.machine.host import Host
from tests.machine.fakes import LIMITS, fabricate


def _machine(n_gpus, name="NVIDIA H100 80GB HBM3"):
    gpus = tuple(Gpu(index=i, uuid=f"GPU-{i}abc", name=name, mem_bytes=80 << 30) for i in range(n_gpus))
    return Machine(hostname="h", cpu="c", n_cores=2, n_cores_host=4, ram_bytes=1 << 30, shm_bytes=None, gpus=gpus)


def test_this_machine():
    machine = read_machine()
    assert 1 <= machine.n_cores <= os.cpu_count()
    assert machine.n_cores_host == os.cpu_count()
    assert machine.ram_bytes > 1 << 28
    assert re.fullmatch(r"[0-9a-f]{8}", machine.fingerprint)
    assert {"python", "autotune", "torch", "ultralytics", "optuna"} <= machine.versions.keys()
    assert read_machine().fingerprint == machine.fingerprint
    assert from_dict(Machine, to_dict(machine)) == machine


def test_limits_of_a_container_count(tmp_path):
    for name, text in {
        "proc/self/cgroup": "0::/",
        "proc/cpuinfo": "processor: 0\nmodel name\t: Fast CPU @ 3 GHz\n",
        "sys/fs/cgroup/cpu.max": "100000 100000",
        "sys/fs/cgroup/memory.max": str(1 << 30),
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    machine = read_machine(Host(root=tmp_path))
    assert (machine.n_cores, machine.ram_bytes, machine.cpu) == (1, 1 << 30, "Fast CPU @ 3 GHz")
    assert machine.shm_bytes is None
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("50000 100000")
    assert read_machine(Host(root=tmp_path)).n_cores == 1  # half a core is still one


def test_an_empty_root_does_not_raise(tmp_path):
    assert read_machine(Host(root=tmp_path)).n_cores >= 1


def test_all_facts_come_from_the_root(tmp_path):
    files = {
        "proc/self/cgroup": "0::/",
        "sys/fs/cgroup/cpu.max": "600000 100000",
        "sys/fs/cgroup/memory.max": str(32 << 30),
        ".dockerenv": "",
        importlib.util.find_spec("torch").origin.replace("__init__.py", "version.py").lstrip("/"): (
            "from typing import Optional\n__version__ = '2.15.0+cu132'\ncuda: Optional[str] = '13.2'\nhip = None\n"
        ),
    }
    host = fabricate(tmp_path, files, affinity=8, env={"NCCL_DEBUG": "INFO", "HOME": "/root"})
    machine = read_machine(host, data="/data")
    assert (machine.n_cores, machine.n_cores_affinity, machine.n_cores_host, machine.cgroup_cores) == (6, 8, 16, 6.0)
    assert (machine.ram_bytes, machine.ram_host_bytes, machine.cgroup_mem_bytes) == (32 << 30, 128 << 30, 32 << 30)
    assert (machine.shm_bytes, machine.container, machine.env) == (64 << 30, "docker", {"NCCL_DEBUG": "INFO"})
    assert machine.rlimits == LIMITS
    assert (machine.data.kind, machine.data.rotational, machine.data.network) == ("ext4", False, False)
    assert {name: machine.versions[name] for name in ("torch", "cuda", "cudnn", "nccl")} == {
        "torch": "2.15.0",
        "cuda": "13.2",
        "cudnn": "9.26.0.51",
        "nccl": "2.30.7",
    }
    assert from_dict(Machine, to_dict(machine)) == machine
    assert read_machine(host).data is None


def test_a_wheel_for_cpus_has_no_cuda(tmp_path):
    name = importlib.util.find_spec("torch").origin.replace("__init__.py", "version.py").lstrip("/")
    machine = read_machine(
        fabricate(tmp_path, {name: "cuda: Optional[str] = None\n"}, distributions={"torch": "2.15.0"})
    )
    assert machine.versions.keys() == {"python", "autotune", "torch"}


def test_this_machine_agrees_with_torch_itself():
    code = "import json, torch; print(json.dumps(torch.version.cuda))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert read_machine().versions.get("cuda") == json.loads(done.stdout)


def test_fingerprint_tells_what_matters():
    gpus = _machine(1).gpus
    base = (gpus, "cpu", 2, 8 << 30, "580", {"torch": "2", "ultralytics": "8", "optuna": "5"})
    same = (
        (Gpu(index=3, uuid="GPU-other", name=gpus[0].name, mem_bytes=gpus[0].mem_bytes),),
        "cpu",
        2,
        (8 << 30) + 4096,
        "580",
        {"torch": "2", "ultralytics": "8"},
    )
    assert fingerprint(*base) == fingerprint(*same)
    for i, other in enumerate([(), "x", 3, 16 << 30, "581", {"torch": "2.1", "ultralytics": "8"}]):
        changed = list(base)
        changed[i] = other
        assert fingerprint(*changed) != fingerprint(*base)


@pytest.mark.parametrize(
    ("n_gpus", "name", "text"),
    [
        (0, "", "CPU, 2 cores"),
        (1, "NVIDIA H100 80GB HBM3", "H100 80GB"),
        (4, "NVIDIA H100 80GB HBM3", "4 x H100 80GB"),
        (2, "NVIDIA GeForce RTX 4090", "2 x RTX 4090"),
        (1, "NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
        (1, "Tesla T4", "T4"),
    ],
)
def test_describe(n_gpus, name, text):
    assert describe(_machine(n_gpus, name)) == text


@pytest.mark.parametrize(
    ("n_gpus", "flag", "device", "env", "want"),
    [
        (0, None, None, {}, ("cpu", ())),
        (0, None, "cpu", {}, ("cpu", ())),
        (1, None, None, {}, ("0", ("GPU-0abc",))),
        (4, None, None, {}, ("0", ("GPU-0abc",))),
        (4, None, "", {}, ("0", ("GPU-0abc",))),
        (1, "1", None, {}, ("0", ("GPU-0abc",))),
        (4, "1", None, {}, ("0", ("GPU-0abc",))),
        (1, "all", None, {}, ("0", ("GPU-0abc",))),
        (4, None, "cpu", {}, ("cpu", ())),
        (4, None, 2, {}, ("2", ("GPU-2abc",))),
        (4, None, "cuda:1", {}, ("1", ("GPU-1abc",))),
        (4, None, "cuda", {}, ("0", ("GPU-0abc",))),
        (4, None, [3], {}, ("3", ("GPU-3abc",))),
        (4, None, -1, {}, ("0", ("GPU-0abc",))),
        (4, None, None, {"CUDA_VISIBLE_DEVICES": "2,0"}, ("0", ("GPU-2abc",))),
        (4, "2", None, {}, ("0,1", ("GPU-0abc", "GPU-1abc"))),
        (4, "0,2", None, {}, ("0,2", ("GPU-0abc", "GPU-2abc"))),
        (2, "all", None, {}, ("0,1", ("GPU-0abc", "GPU-1abc"))),
        (4, None, "0,1", {}, ("0,1", ("GPU-0abc", "GPU-1abc"))),
        (4, None, [2, 1], {}, ("2,1", ("GPU-2abc", "GPU-1abc"))),
        (4, "2", None, {"CUDA_VISIBLE_DEVICES": "3,1"}, ("0,1", ("GPU-3abc", "GPU-1abc"))),
        (4, "all", None, {"CUDA_VISIBLE_DEVICES": "3"}, ("0", ("GPU-3abc",))),
        (4, None, None, {"CUDA_VISIBLE_DEVICES": "GPU-1"}, ("0", ("GPU-1abc",))),
        (4, None, None, {"CUDA_VISIBLE_DEVICES": ""}, ("cpu", ())),
        (4, None, None, {"CUDA_VISIBLE_DEVICES": "-1"}, ("cpu", ())),
        (4, None, 1, {"CUDA_VISIBLE_DEVICES": "2,0,9,1"}, ("1", ("GPU-0abc",))),
    ],
)
def test_which_gpu(n_gpus, flag, device, env, want):
    assert resolve_gpus(flag, device, _machine(n_gpus), env) == want


@pytest.mark.parametrize(
    ("n_gpus", "flag", "device", "env", "message"),
    [
        (0, "9", None, {}, "--gpus 9: there is no GPU here"),
        (0, "1", None, {}, "--gpus 1: there is no GPU here"),
        (0, "all", None, {}, "--gpus all: there is no GPU here"),
        (0, None, 0, {}, "device=0: there is no GPU here"),
        (4, "9", None, {}, "--gpus 9: there are 4 visible GPUs here"),
        (4, "2", None, {"CUDA_VISIBLE_DEVICES": "1"}, "there is 1 visible GPU here (CUDA_VISIBLE_DEVICES hides some)"),
        (4, None, 2, {"CUDA_VISIBLE_DEVICES": "2,0,9,1"}, "there are 2 visible GPUs"),
        (4, "1,1", None, {}, "--gpus 1,1 names a GPU twice"),
        (4, "0", None, {}, "--gpus 0 would be no GPU"),
        (4, "two", None, {}, "--gpus two is neither a number"),
        (4, "-1", None, {}, "--gpus -1 is neither a number"),
        (4, "", None, {}, "is neither a number"),
        (4, "1.5", None, {}, "--gpus 1.5 is neither a number"),
        (4, None, "mps", {}, "device=mps is not supported"),
        (4, "1", 0, {}, "--gpus 1 and device=0 are both given"),
    ],
)
def test_gpus_that_cannot_be_had(n_gpus, flag, device, env, message):
    with pytest.raises(InputError) as e:
        resolve_gpus(flag, device, _machine(n_gpus), env)
    assert message in e.value.message


def test_new_facts_do_not_touch_the_fingerprint(tmp_path):
    host = fabricate(tmp_path)
    other = fabricate(tmp_path, {".dockerenv": ""}, env={"NCCL_DEBUG": "INFO"}, limits=dict.fromkeys(LIMITS))
    there, here = read_machine(host), read_machine(other, data="/data")
    assert there != here
    assert there.fingerprint == here.fingerprint


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"cgroup_cores": 4.0}, "CPU quota none, now 4.0 cores"),
        ({"cgroup_mem_bytes": 8 << 30}, "memory limit none, now 8.0 GiB"),
        ({"shm_bytes": 64 << 20}, "/dev/shm 64.0 GiB, now 64 MiB"),
        ({"versions": {"cuda": "12.6", "nccl": "2.30.7"}}, "CUDA 13.2, now 12.6"),
        ({"versions": {"cuda": "13.2", "nccl": "2.31.0"}}, "NCCL 2.30.7, now 2.31.0"),
        (
            {"data": Mount(path="/d", point="/d", kind="nfs4", network=True)},
            "file system of the dataset ext4, now nfs4",
        ),
    ],
)
def test_new_facts_that_changed_are_named_and_those_never_recorded_are_not(facts, said):
    then = replace(
        _machine(0),
        shm_bytes=64 << 30,
        versions={"cuda": "13.2", "nccl": "2.30.7"},
        n_cores_affinity=4,
        ram_host_bytes=1 << 30,
        data=Mount(path="/d", point="/", kind="ext4"),
    )
    now = replace(then, **facts)
    assert changes(then, now) == (said,)
    before = replace(then, shm_bytes=None, versions={}, n_cores_affinity=None, ram_host_bytes=None, data=None)
    assert changes(before, now) == ()


def test_what_changed_between_two_machines_in_words() -> None:
    then = Machine(
        hostname="a",
        cpu="Example CPU",
        n_cores=8,
        n_cores_host=16,
        ram_bytes=64 << 30,
        shm_bytes=None,
        gpus=tuple(Gpu(index=i, uuid=f"GPU-{i}", name="NVIDIA A100-SXM4-40GB", mem_bytes=40 << 30) for i in range(2)),
        driver="550.1",
        versions={"torch": "2.14.0", "ultralytics": "8.4.190", "python": "3.11.7", "pandas": "3.0"},
    )
    assert changes(then, then) == ()
    now = replace(
        then,
        hostname="b",
        n_cores=4,
        gpus=tuple(replace(g, name="NVIDIA H100 80GB HBM3", mem_bytes=80 << 30) for g in then.gpus[:1]),
        driver="570.2",
        versions={"torch": "2.15.0", "ultralytics": "8.4.190", "python": "3.12.0"},
    )
    assert changes(then, now) == (
        "GPUs: 2 x A100-SXM4-40GB, now H100 80GB",
        "usable cores 8, now 4",
        "NVIDIA driver 550.1, now 570.2",
        "torch 2.14.0, now 2.15.0",
        "pandas 3.0, now none",
        "python 3.11.7, now 3.12.0",
        "host name a, now b",
    )
    assert changes(then, replace(then, driver=None, gpus=())) == (
        "GPUs: 2 x A100-SXM4-40GB, now CPU, 8 cores",
        "NVIDIA driver 550.1, now none",
    )
    larger = replace(then, gpus=tuple(replace(g, mem_bytes=80 << 30) for g in then.gpus))
    assert changes(then, larger)[0].endswith("with 40 GiB, now A100-SXM4-40GB with 80 GiB + A100-SXM4-40GB with 80 GiB")
