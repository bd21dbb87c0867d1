"""Every check on synthetic machines: a healthy one gets no warning, a seeded fault is found, unreadable is unknown."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from autotune.contract import Gpu
from autotune.machine.checks import examine
from autotune.machine.checks.cpu import CPU
from autotune.machine.checks.data import DATA, READS, read_speed
from autotune.machine.checks.finding import Finding, Plan, Subject
from autotune.machine.checks.memory import MEMORY
from autotune.machine.checks.network import NETWORK
from autotune.machine.checks.software import SOFTWARE
from autotune.machine.facts import read_machine
from autotune.machine.host import Space
from tests.machine.fakes import DISTRIBUTIONS, HEALTHY, LIMITS, SPACES, UNSET_CLOCK, fabricate

HOSTS = MEMORY | CPU | DATA | SOFTWARE | NETWORK
GPUS = ("GPU-0", "GPU-1")
PLAN: dict[str, Any] = {
    "gpus": GPUS,
    "n_ranks": 2,
    "batch_per_gpu": 16,
    "workers": 8,
    "n_images": 1000,
    "image_bytes": 200 << 20,
    "image_hw": (480, 640),
    "data": "/data",
    "out": "/results",
}
ALONE: dict[str, Any] = {"gpus": (), "n_ranks": 1}
TWO_NODES: dict[str, str | None] = {
    "sys/devices/system/node/node0/cpulist": "0-7",
    "sys/devices/system/node/node1/cpulist": "8-15",
}
QUOTA: dict[str, str | None] = {"sys/fs/cgroup/cpu.max": "400000 100000"}
INFINIBAND: dict[str, str | None] = {
    "sys/class/infiniband/mlx5_0/ports/1/state": "4: ACTIVE",
    "sys/class/infiniband/mlx5_0/ports/1/rate": "400 Gb/sec (4X NDR)",
}
NFS: dict[str, str | None] = {
    "proc/self/mountinfo": f"{HEALTHY['proc/self/mountinfo']}31 22 0:41 / /data rw - nfs4 server:/export rw\n"
}
TURNING: dict[str, str | None] = {"sys/dev/block/8:1/queue/rotational": "1"}


def clocks(governor: str, driver: str) -> dict[str, str | None]:
    cpus = {f"sys/devices/system/cpu/cpu{i}/cpufreq/scaling_governor": governor for i in range(16)}
    return {**cpus, "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver": driver}


def meminfo(available_gib: float = 120, swap_free_gib: float = 8) -> dict[str, str | None]:
    kib = {"MemTotal": 128, "MemAvailable": available_gib, "SwapTotal": 8, "SwapFree": swap_free_gib}
    return {"proc/meminfo": "".join(f"{name}: {round(gib * 2**20)} kB\n" for name, gib in kib.items())}


def root(**fields: int) -> dict[str, Space | None]:
    return {**SPACES, "/": dataclasses.replace(SPACES["/"], **fields)}


def shm(free_bytes: int) -> dict[str, Space | None]:
    return {**SPACES, "/dev/shm": Space(total_bytes=free_bytes, free_bytes=free_bytes)}


def subject(
    tmp_path: Path,
    files: dict[str, str | None] | None = None,
    *,
    plan: dict[str, Any] | None = None,
    gpus: tuple[int | None, ...] = (0, 0),
    versions: dict[str, str] | None = None,
    **given: Any,
) -> Subject:
    """A synthetic machine with two GPUs and a job for it; `gpus` are their NUMA nodes."""
    host = fabricate(tmp_path, files, **given)
    asked = Plan(**{**PLAN, **(plan or {})})
    machine = read_machine(host, data=asked.data)
    found = tuple(
        Gpu(index=i, uuid=GPUS[i], name="Synthetic GPU", mem_bytes=80 << 30, numa_node=node)
        for i, node in enumerate(gpus)
    )
    machine = dataclasses.replace(machine, gpus=found, versions=machine.versions | (versions or {}))
    return Subject(machine=machine, host=host, plan=asked)


def said(finding: Finding) -> str:
    return " ".join((finding.says, *finding.evidence, finding.remedy))


HEALTHY_MACHINES: dict[str, dict[str, Any]] = {
    "a server": {},
    "a server with its clock at full": {"files": clocks("performance", "acpi-cpufreq")},
    "a server without swap": {"files": {"proc/meminfo": "MemTotal: 134217728 kB\nMemAvailable: 125829120 kB\n"}},
    "a docker container": {
        "files": {
            ".dockerenv": "",
            "proc/self/mountinfo": "22 1 0:50 / / rw - overlay overlay rw,lowerdir=/a\n",
            "proc/1/comm": "python",
            "sys/fs/cgroup/cpu.max": "max 100000",
            "sys/fs/cgroup/memory.max": "max",
            "sys/fs/cgroup/cpu.stat": "usage_usec 5\nnr_periods 0\nnr_throttled 0",
            "sys/fs/cgroup/pids.max": "max",
        }
    },
    "a container with a wide quota": {"files": {"sys/fs/cgroup/cpu.max": "1600000 100000"}},
    "a virtual machine": {
        "files": {
            "proc/cpuinfo": "model name : Synthetic\nflags : fpu hypervisor\n",
            "sys/dev/block/8:1/queue/rotational": "1",
        }
    },
    "a desktop's default of open files": {"limits": LIMITS | {"nofile": 1024}},
    "a CPU job": {"plan": ALONE, "gpus": ()},
    "all files of Ultralytics": {
        "files": {
            "usr/share/": None,
            "cfg/Ultralytics/Arial.ttf": "",
            "cfg/Ultralytics/settings.json": '{"weights_dir": "/w"}',
            "w/yolo26n.pt": "",
        },
        "env": {"YOLO_CONFIG_DIR": "/cfg"},
        "plan": {"half": True},
    },
    "images of classes need no font": {"files": {"usr/share/": None}, "plan": {"task": "classify"}},
    "no dataset": {"plan": {"data": None, "n_images": None, "image_bytes": None}},
    "several machines": {"plan": {"n_nodes": 4}},
    "several machines with InfiniBand": {
        "plan": {"n_nodes": 4},
        "files": {**INFINIBAND, "proc/modules": "nvidia_peermem 16384 0 - Live 0x0"},
        "limits": LIMITS | {"memlock": None},
    },
}


@pytest.mark.parametrize("name", HEALTHY_MACHINES)
def test_nothing_is_said_against_a_healthy_machine(tmp_path: Path, name: str) -> None:
    findings = examine(subject(tmp_path, **HEALTHY_MACHINES[name]))
    spoken = {check: f for check, f in findings.items() if f.verdict not in ("ok", "info") and check in HOSTS}
    assert spoken == {}
    assert all(f.remedy == "" for check, f in findings.items() if f.verdict == "ok" and check in HOSTS)


FAULTS: list[tuple[str, str, dict[str, Any], str]] = [
    # check, verdict, how the machine differs from the healthy one, a word of what is said
    ("shared memory", "fail", {"spaces": shm(64 << 20)}, "--shm-size"),
    ("shared memory", "warn", {"spaces": shm(2 << 30)}, "full queues need"),
    ("shared memory", "warn", {"spaces": shm(64 << 20), "plan": ALONE, "gpus": ()}, "plain YOLO has none on a CPU"),
    ("shared memory", "fail", {"spaces": shm(2 << 30), "plan": {"task": "classify"}}, "needs 2.3 GiB"),
    ("shared memory", "warn", {"spaces": shm(60 << 30), "plan": {"imgsz": 1280, "batch_per_gpu": 128}}, "--shm-size"),
    ("memory", "fail", {"files": meminfo(available_gib=1)}, "import torch"),
    ("memory", "warn", {"files": meminfo(available_gib=3)}, "workers"),
    ("memory", "warn", {"plan": {"cache": "ram", "n_images": 118_000}}, "cache=disk"),
    ("memory", "info", {"plan": {"image_bytes": 500 << 30}}, "every epoch"),
    (
        "memory",
        "fail",
        {
            "files": {
                "sys/fs/cgroup/memory.max": str(4 << 30),
                "sys/fs/cgroup/memory.current": str(4 << 30),
                "sys/fs/cgroup/memory.stat": f"anon {3 << 30}\nfile {1 << 30}\nshmem {1 << 30}",
            }
        },
        "0.0 MiB left of the group's limit",
    ),
    ("swap and OOM kills", "warn", {"files": meminfo(swap_free_gib=1)}, "swapped out"),
    ("swap and OOM kills", "info", {"files": meminfo(swap_free_gib=7.5)}, "512 MiB swapped out"),
    ("swap and OOM kills", "info", {"files": {"proc/vmstat": "oom_kill 3"}}, "3 killed"),
    (
        "swap and OOM kills",
        "warn",
        {"files": {"sys/fs/cgroup/memory.max": str(8 << 30), "sys/fs/cgroup/memory.events": "oom 2\noom_kill 2"}},
        "2 processes so far",
    ),
    ("limits", "fail", {"limits": LIMITS | {"nofile": 128}}, "ulimit -n"),
    ("limits", "warn", {"limits": LIMITS | {"nofile": 512}}, "--ulimit nofile"),
    ("limits", "info", {"limits": LIMITS | {"nofile": 1024}}, "1024 open files"),
    ("limits", "warn", {"files": INFINIBAND}, "memlock=-1"),
    ("limits", "warn", {"limits": LIMITS | {"stack": None}, "versions": {"nccl": "2.27.3"}}, "2.27.3"),
    ("limits", "warn", {"limits": LIMITS | {"nproc": 200}}, "200 processes of this user"),
    (
        "limits",
        "fail",
        {"files": {"sys/fs/cgroup/pids.max": "100", "sys/fs/cgroup/pids.current": "90"}},
        "--pids-limit",
    ),
    (
        "limits",
        "warn",
        {"files": {"sys/fs/cgroup/pids.max": "300", "sys/fs/cgroup/pids.current": "9"}},
        "291 processes",
    ),
    ("CPUs", "warn", {"files": QUOTA}, "workers=2"),
    ("CPUs", "warn", {"affinity": 4}, "4 of 16 cores"),
    ("CPUs", "info", {"files": QUOTA, "plan": {**ALONE, "workers": 2}, "gpus": ()}, "4 of 16 cores"),
    (
        "CPUs",
        "warn",
        {"files": {**QUOTA, "sys/fs/cgroup/cpu.stat": "nr_periods 1000\nnr_throttled 200"}, "plan": {"workers": 2}},
        "20%",
    ),
    ("cores per rank", "warn", {"cpus": 4, "affinity": 4}, "2 cores a rank"),
    ("cores per rank", "info", {"cpus": 12, "affinity": 12}, "6 cores a rank"),
    ("CPU clock policy", "warn", {"files": clocks("powersave", "acpi-cpufreq")}, "cpupower"),
    ("CPU clock policy", "info", {"files": clocks("powersave", "intel_pstate")}, "powersave"),
    ("CPU clock policy", "info", {"files": clocks("schedutil", "acpi-cpufreq")}, "schedutil"),
    ("NUMA", "info", {"files": TWO_NODES, "gpus": (0, 1)}, "binding"),
    ("NUMA", "warn", {"files": TWO_NODES, "gpus": (0, 1), "commands": {}}, "numactl"),
    (
        "NUMA",
        "warn",
        {"files": {**TWO_NODES, "proc/self/status": "Cpus_allowed_list:\t0-3"}, "gpus": (0, 1)},
        "node of GPU 1",
    ),
    ("pressure", "warn", {"files": {"proc/pressure/cpu": "some avg10=45.0 avg60=1 avg300=1 total=1"}}, "wait for cpu"),
    ("pressure", "warn", {"files": {"proc/pressure/io": "some avg10=12.5 avg60=1 avg300=1 total=1"}}, "wait for io"),
    ("dataset file system", "warn", {"files": NFS}, "nfs4"),
    ("dataset file system", "warn", {"files": TURNING, "plan": {"image_bytes": 500 << 30}}, "turns"),
    ("dataset file system", "info", {"files": TURNING}, "first epoch"),
    ("disk space", "fail", {"read_only": frozenset({"/results"})}, "--out"),
    ("disk space", "fail", {"read_only": frozenset({"/tmp"})}, "TMPDIR"),
    ("disk space", "fail", {"spaces": root(free_bytes=50 << 20)}, "/results is full"),
    ("disk space", "fail", {"spaces": root(free_inodes=0)}, "no more files"),
    ("disk space", "warn", {"spaces": root(free_bytes=1 << 30)}, "1.0 GiB free"),
    ("disk space", "warn", {"spaces": root(free_inodes=5000)}, "5000 more files"),
    ("disk space", "warn", {"plan": {"cache": "disk", "n_images": 300_000}}, "cache=disk"),
    ("container", "info", {"files": {"proc/88/stat": "88 (a b) Z 1 88 88 0"}}, "--init"),
    ("container", "warn", {"files": {f"proc/{i}/stat": f"{i} (x) Z 1 1 1 0" for i in range(200, 300)}}, "100 ended"),
    ("environment", "warn", {"env": {"CUDA_LAUNCH_BLOCKING": "1"}}, "unset CUDA_LAUNCH_BLOCKING"),
    ("environment", "warn", {"env": {"NCCL_DEBUG": "TRACE"}}, "NCCL_DEBUG=TRACE"),
    ("environment", "warn", {"env": {"NCCL_P2P_DISABLE": "1"}}, "NCCL_P2P_DISABLE"),
    ("environment", "warn", {"env": {"TORCH_DISTRIBUTED_DEBUG": "DETAIL"}}, "DETAIL"),
    ("environment", "warn", {"env": {"TORCHDYNAMO_DISABLE": "1"}}, "torch.compile does nothing"),
    ("environment", "warn", {"env": {"CUDNN_LOGLEVEL_DBG": "3"}}, "cuDNN logs"),
    (
        "environment",
        "warn",
        {"env": {"PYTORCH_ALLOC_CONF": "a", "PYTORCH_CUDA_ALLOC_CONF": "b"}},
        "the first wins",
    ),
    ("environment", "warn", {"files": {"etc/nccl.conf": "NCCL_P2P_DISABLE=1  # old"}}, "etc/nccl.conf"),
    ("environment", "info", {"env": {"OMP_NUM_THREADS": "4", "CUDA_LAUNCH_BLOCKING": "0"}}, "OMP_NUM_THREADS=4"),
    ("compiler", "warn", {"commands": {}, "plan": {"compiles": True}}, "apt-get install"),
    ("compiler", "info", {"commands": {}}, "gcc or cc or clang missing"),
    (
        "compiler",
        "warn",
        {"distributions": {k: v for k, v in DISTRIBUTIONS.items() if k != "triton"}, "plan": {"compiles": True}},
        "pip install triton",
    ),
    ("packages", "fail", {"distributions": {}}, "pip install torch torchvision ultralytics"),
    ("packages", "warn", {"distributions": DISTRIBUTIONS | {"cloudpickle": "2.2.1"}}, "cloudpickle>=3.1.1"),
    ("packages", "info", {"distributions": DISTRIBUTIONS | {"cloudpickle": "2.2.1"}, "plan": ALONE}, "2.2.1"),
    (
        "packages",
        "info",
        {"files": {"usr/share/": None}, "env": {"HOME": "/home/u"}},
        "put Arial.ttf into /home/u/.config/Ultralytics",
    ),
    ("packages", "info", {"plan": {"half": True}}, "put yolo26n.pt into weights"),
    (
        "packages",
        "info",
        {
            "files": {"cfg/Ultralytics/settings.json": '{"weights_dir": "/w"}', "w/yolo11n.pt": ""},
            "env": {"YOLO_CONFIG_DIR": "/cfg"},
            "plan": {"half": True},
        },
        "downloads yolo26n.pt first",
    ),
    ("network", "fail", {"files": {"sys/class/net/eth0/operstate": "down"}, "plan": {"n_nodes": 2}}, "no network"),
    ("network", "warn", {"files": {"sys/class/net/eth0/speed": "1000"}, "plan": {"n_nodes": 2}}, "NCCL_SOCKET_IFNAME"),
    ("network", "warn", {"files": {"sys/class/net/eth0/mtu": "1500"}, "plan": {"n_nodes": 2}}, "mtu 9000"),
    ("network", "warn", {"files": INFINIBAND, "plan": {"n_nodes": 2}}, "nvidia_peermem"),
    (
        "network",
        "warn",
        {"files": {**INFINIBAND, "sys/class/infiniband/mlx5_0/ports/1/state": "1: DOWN"}, "plan": {"n_nodes": 2}},
        "not active",
    ),
    ("clock", "warn", {"clock_s": UNSET_CLOCK, "plan": {"n_nodes": 2}}, "chrony"),
    ("clock", "warn", {"clock_s": 3.0, "plan": {"n_nodes": 2}}, "3.0 s"),
]


@pytest.mark.parametrize(("check", "verdict", "how", "word"), FAULTS)
def test_each_seeded_fault_is_found(tmp_path: Path, check: str, verdict: str, how: dict[str, Any], word: str) -> None:
    finding = examine(subject(tmp_path, **how))[check]
    assert finding.verdict == verdict, finding
    assert word in said(finding)
    if verdict in ("warn", "fail"):
        assert finding.remedy


@pytest.mark.parametrize("name", ["a server", "all files of Ultralytics", "images of classes need no font"])
def test_where_all_files_are_nothing_is_downloaded(tmp_path: Path, name: str) -> None:
    assert examine(subject(tmp_path, **HEALTHY_MACHINES[name]))["packages"].verdict == "ok"


def test_faults_are_seeded_for_every_check() -> None:
    assert {check for check, *_ in FAULTS} == HOSTS.keys() - {"kernel"}, "that one only informs"


UNREADABLE: list[tuple[str, dict[str, Any]]] = [
    ("shared memory", {"spaces": {**SPACES, "/dev/shm": None}}),
    ("memory", {"files": {"proc/meminfo": None}}),
    ("memory", {"files": {"proc/meminfo": "MemTotal: 5 kB"}}),
    ("swap and OOM kills", {"files": {"proc/vmstat": None}}),
    ("swap and OOM kills", {"files": {"proc/meminfo": None}}),
    ("memory", {"files": {"sys/fs/": None}}),
    ("memory", {"files": {"sys/fs/cgroup/memory.max": ""}}),
    ("CPUs", {"files": {"sys/fs/": None}}),
    ("CPUs", {"files": {"proc/self/cgroup": None}}),
    ("CPUs", {"files": {"sys/fs/cgroup/cpu.max": ""}}),
    (
        "CPUs",
        {
            "files": {
                "proc/self/cgroup": "1:cpu:/\n0::/\n",
                "sys/fs/cgroup/cpu/cgroup.procs": "",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "",
            }
        },
    ),
    ("cores per rank", {"files": {"sys/fs/": None}}),
    ("CPU clock policy", {"files": {"sys/devices/system/cpu/cpu0/cpufreq/scaling_driver": "x"}}),
    ("NUMA", {"files": {"sys/devices/system/node/": None}}),
    ("NUMA", {"files": {"sys/devices/system/node/node0/cpulist": "?"}}),
    ("pressure", {"files": {"proc/pressure/": None}}),
    ("pressure", {"files": {"proc/pressure/memory": None}}),
    ("kernel", {"files": {"proc/sys/": None, "sys/kernel/": None}}),
    ("dataset file system", {"files": {"proc/self/mountinfo": None}}),
    ("disk space", {"spaces": {**SPACES, "/": None}}),
    ("container", {"files": dict.fromkeys(("proc/1/", "proc/77/"))}),
    ("network", {"files": {"sys/class/net/": None}, "plan": {"n_nodes": 2}}),
    ("network", {"files": {"sys/class/net/eth0/speed": "-1"}, "plan": {"n_nodes": 2}}),
    ("clock", {"clock_s": None, "plan": {"n_nodes": 2}}),
]


@pytest.mark.parametrize(("check", "how"), UNREADABLE)
def test_what_cannot_be_read_is_unknown(tmp_path: Path, check: str, how: dict[str, Any]) -> None:
    assert examine(subject(tmp_path, **how))[check].verdict == "unknown"


def test_facts_that_an_old_record_lacks_are_unknown(tmp_path: Path) -> None:
    examined = subject(tmp_path)
    old = dataclasses.replace(examined.machine, n_cores_affinity=None, rlimits={})
    findings = examine(dataclasses.replace(examined, machine=old))
    assert (findings["CPUs"].verdict, findings["limits"].verdict) == ("unknown", "unknown")


def test_an_empty_folder_answers_nothing_and_raises_nothing(tmp_path: Path) -> None:
    """Nothing of /proc and /sys: no check may call that good."""
    host = dataclasses.replace(fabricate(tmp_path / "other"), root=tmp_path / "empty", distributions={}, commands={})
    (tmp_path / "empty").mkdir()
    plan = Plan(**{**PLAN, "n_nodes": 2})
    findings = examine(Subject(machine=read_machine(host, data="/data"), host=host, plan=plan))
    good = {name for name, f in findings.items() if f.verdict == "ok" and name in HOSTS}
    assert good == {"limits", "disk space", "environment", "clock"}, "those answered without a file"


def test_what_does_not_apply_is_left_out(tmp_path: Path) -> None:
    plan = {**ALONE, "data": None, "workers": 0}
    names = examine(subject(tmp_path, plan=plan, gpus=())).keys()
    absent = {"shared memory", "cores per rank", "CPU clock policy", "dataset file system", "network", "clock"}
    assert HOSTS.keys() - names == absent


def test_shared_memory_follows_the_formula(tmp_path: Path) -> None:
    """KNOBS 1.6: 8 ranks x 8 workers x 4 batches x 64 images at 640 pixels are 18.75 GiB of training queues."""
    gpus = tuple(f"GPU-{i}" for i in range(8))
    plan = {"gpus": gpus, "n_ranks": 8, "batch_per_gpu": 64, "n_images": 118_000}
    text = said(examine(subject(tmp_path, plan=plan, cpus=256, affinity=256))["shared memory"])
    assert (
        "8 ranks x (8 workers x 4 batches of 64 images at 640 pixels = 2.3 GiB, and 4.7 GiB while it validates)" in text
    )
    assert "full queues need 67.5 GiB" in text  # 1.2 x 8 x (2.34 + 4.69)


@pytest.mark.parametrize(("n_images", "workers"), [(1000, 8), (96, 3), (33, 2), (32, 0)])
def test_a_small_dataset_has_fewer_workers(tmp_path: Path, n_images: int, workers: int) -> None:
    """Ultralytics starts no more workers than a rank has batches, and none for one (two ranks, batches of 16)."""
    findings = examine(subject(tmp_path, plan={"n_images": n_images}))
    assert ("shared memory" in findings) is (workers > 0)
    if workers:
        assert f"({workers} workers x 4 batches of 16" in said(findings["shared memory"])


# read speed: real files, a clock of the test


def ticking(step_s: float) -> Any:
    now = [0.0]

    def clock() -> float:
        now[0] += step_s
        return now[0]

    return clock


@pytest.mark.parametrize(
    ("step_s", "plan", "verdict", "word"),
    [
        (1e-6, {}, "ok", "images/s"),
        (2e-3, {}, "info", "after the first epoch"),
        (2e-3, {"image_bytes": 500 << 30}, "warn", "slower than the cores"),
        (9.0, {"image_bytes": 500 << 30}, "unknown", "could be read"),
        (1e-6, {"data": "/results"}, "unknown", "no image"),
    ],
)
def test_read_speed(tmp_path: Path, step_s: float, plan: dict[str, Any], verdict: str, word: str) -> None:
    examined = subject(tmp_path, plan={"workers": 1, **plan})
    for i in range(300):
        (tmp_path / f"data/images/{i}.jpg").write_bytes(b"x" * 1000)
    finding = read_speed(examined, clock=ticking(step_s))
    assert finding is not None
    assert finding.verdict == verdict, finding
    assert word in said(finding)
    if verdict in ("ok", "warn", "info"):
        assert "200 images with 1 thread" in said(finding)


def test_reads_are_for_the_doctor_only(tmp_path: Path) -> None:
    examined = subject(tmp_path)
    assert "read speed" not in examine(examined)
    assert "read speed" in examine(examined, READS)
    no_data = dataclasses.replace(examined, plan=dataclasses.replace(examined.plan, data=None))
    assert "read speed" not in examine(no_data, READS)
