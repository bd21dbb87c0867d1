"""`autotune doctor` on this machine, on real faults, on a real job, and every wrong input it can be given."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from autotune.machine.facts import read_machine
from tests.cli import autotune

TINY = Path(__file__).parents[1] / "models" / "tiny-detect.yaml"


def doctor_in(shell: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `SHELL; python -m autotune doctor --json` in a shell of its own."""
    command = f'{shell}; exec "{sys.executable}" -m autotune doctor --json'
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        ["sh", "-ec", command], capture_output=True, text=True, timeout=60, env=os.environ | {"PYTHONPATH": path} | env
    )


def answer_of(done: subprocess.CompletedProcess[str]) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """Machine, and checks by name."""
    answer = json.loads(done.stdout)
    return answer["machine"], {check["name"]: check for check in answer["checks"]}


def test_this_machine_as_others_see_it() -> None:
    done = doctor_in("true", WANDB_API_KEY="hunter2", TORCH_TOKEN="hunter2")
    machine, checks = answer_of(done)
    assert done.returncode == (3 if any(c["verdict"] == "fail" for c in checks.values()) else 0)
    assert machine["n_cores_host"] == os.cpu_count()
    assert machine["n_cores_affinity"] == len(os.sched_getaffinity(0))
    assert machine["ram_host_bytes"] == psutil.virtual_memory().total
    assert machine["shm_bytes"] == shutil.disk_usage("/dev/shm").total
    assert machine["hostname"] == socket.gethostname()
    assert machine["fingerprint"] == read_machine().fingerprint
    assert machine["rlimits"]["nofile"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert {"shared memory", "memory", "limits", "CPUs", "NUMA", "disk space", "environment"} <= checks.keys()
    assert "model parallel" not in checks, "no job was named"
    free = re.search(r"([\d.]+) GiB available on the host", checks["memory"]["evidence"])
    assert free is not None
    assert float(free[1]) == pytest.approx(psutil.virtual_memory().available / 2**30, rel=0.3)
    there = re.search(r": ([\d.]+) GiB of ([\d.]+) GiB free", checks["disk space"]["evidence"])
    assert there is not None
    assert float(there[2]) == pytest.approx(shutil.disk_usage(Path.cwd()).total / 2**30, abs=0.1)
    assert "hunter2" not in done.stdout


def test_without_a_job_it_reads_well(tmp_path: Path) -> None:
    said = autotune("doctor")
    lines = said.out.splitlines()
    assert lines[0].startswith("host         ")
    verdicts = [line.split()[0] for line in lines if re.match(r"(fail|warn|unknown|info|ok) ", line)]
    assert verdicts == sorted(verdicts, key=["fail", "warn", "unknown", "info", "ok"].index)
    assert re.fullmatch(rf"{len(verdicts)} checks: .*\d+ ok", lines[-1])


def test_the_users_home_is_not_spelled(tmp_path: Path) -> None:
    (tmp_path / "alice").mkdir()
    done = doctor_in(f"cd {tmp_path}/alice", HOME=f"{tmp_path}/alice", LD_LIBRARY_PATH=f"{tmp_path}/alice/lib")
    machine, checks = answer_of(done)
    assert machine["env"]["LD_LIBRARY_PATH"] == "~/lib"
    assert "~: " in checks["disk space"]["evidence"]
    assert "alice" not in done.stdout


def test_several_machines_are_asked_about_their_network() -> None:
    said = autotune("doctor", "--json", "--nnodes", "2")
    assert {"network", "clock"} <= {check["name"] for check in json.loads(said.out)["checks"]}


def test_a_small_dev_shm_is_found() -> None:
    """A real one: 64 MiB, docker's default, mounted over /dev/shm in a mount namespace of our own."""
    own = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    tried = subprocess.run(
        [*own, "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], capture_output=True, text=True, timeout=60
    )
    if tried.returncode:
        pytest.skip(f"the kernel allows no mount namespace here: {tried.stderr.strip()}")
    inner = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$0" -m autotune doctor --json'
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [*own, "sh", "-ec", inner, sys.executable],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": path},
    )
    machine, checks = answer_of(done)
    assert machine["shm_bytes"] == 64 << 20
    # Plain YOLO has no loader workers on a CPU: there only what a trial may try is at risk.
    assert (done.returncode, checks["shared memory"]["verdict"]) == ((3, "fail") if machine["gpus"] else (0, "warn"))
    assert "64 MiB free in /dev/shm" in checks["shared memory"]["evidence"]
    assert "--shm-size" in checks["shared memory"]["remedy"]


@pytest.fixture
def half_a_core() -> Iterator[Path]:
    """A real cgroup with a quota of half a core; skipped with the kernel's words where none can be made."""
    v1, v2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    group = (v1 if v1.is_dir() else v2) / f"autotune-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as e:
        pytest.skip(f"no cgroup can be made here: {e}")
    try:
        if v1.is_dir():
            (group / "cpu.cfs_quota_us").write_text("50000")
        else:
            (group / "cpu.max").write_text("50000 100000")
        yield group
    except OSError as e:
        pytest.skip(f"no quota can be given here: {e}")
    finally:
        group.rmdir()


def test_a_cpu_quota_is_found(half_a_core: Path) -> None:
    done = doctor_in(f"echo $$ > {half_a_core}/cgroup.procs")
    machine, checks = answer_of(done)
    assert (machine["cgroup_cores"], machine["n_cores"]) == (0.5, 1)
    assert "quota 0.5" in checks["CPUs"]["evidence"]
    if (os.cpu_count() or 1) > 1:
        assert checks["CPUs"]["verdict"] in ("warn", "info"), (
            "warn: workers on a GPU, or the quota has stopped us already"
        )
        assert "of 2 cores usable" in checks["CPUs"]["evidence"] or os.cpu_count() != 2


def test_a_low_limit_and_a_left_over_variable_are_found() -> None:
    done = doctor_in("ulimit -n 200", CUDA_LAUNCH_BLOCKING="1")
    assert done.returncode == 3, done
    _, checks = answer_of(done)
    assert (checks["limits"]["verdict"], checks["environment"]["verdict"]) == ("fail", "warn")


@pytest.mark.slow
def test_a_real_job_is_weighed(tiny: Path) -> None:
    before = sorted(tiny.parent.rglob("*"))
    # 64 images in batches of 4, 1000 epochs: 16,000 updates, so `auto` becomes MuSGD, though 16 images are looked at.
    pairs = [f"model={TINY}", f"data={tiny}", "imgsz=64", "batch=4", "nbs=2", "epochs=1000"]
    said = autotune("doctor", "--json", "--ranks", "2", "--gpu-mem", "8GiB", *pairs)
    assert said.code == 0, said
    checks = {check["name"]: check for check in json.loads(said.out)["checks"]}
    assert {"shared memory", "disk space", "dataset file system", "read speed"} <= checks.keys()
    check = checks["model parallel"]
    assert list(check) == ["name", "verdict", "evidence", "remedy"]
    assert (check["name"], check["verdict"]) == ("model parallel", "ok")
    mib = {name: float(x) for name, x in re.findall(r"(\w+) ([\d.]+) MiB", check["evidence"])}
    assert mib["parameters"] == mib["gradients"] == mib["EMA"] > 0.5
    # MuSGD keeps two momenta of a matrix, one of the rest.
    assert mib["parameters"] < mib["MuSGD"] <= 2.1 * mib["parameters"]
    fp32, half = re.search(
        r"image ([\d.]+) MiB in fp32, taken as half of it in 16 bit: ([\d.]+)", check["evidence"]
    ).groups()  # type: ignore[union-attr]
    assert float(half) == pytest.approx(float(fp32) / 2, abs=0.1)
    assert "8.0 GiB (--gpu-mem" in check["evidence"]
    assert "the job asks for 2 a rank" in check["evidence"]
    assert "activation_memory_budget" in check["remedy"]
    assert sorted(tiny.parent.rglob("*")) == before, "nothing is left beside the user's images"


@pytest.mark.slow
def test_a_job_that_cannot_run_there_is_exit_code_3(tiny: Path) -> None:
    said = autotune("doctor", f"model={TINY}", f"data={tiny}", "imgsz=64", "batch=1", "--gpu-mem", "512MiB")
    assert said.code == 3, said
    assert "\nfail     model parallel: not one image fits" in said.out
    assert "remedy: " in said.out
    assert f"examined for {TINY.name} at imgsz 64, batch 1, on " in said.out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--gpu-mem", "24"], ["--gpu-mem '24'", "24GiB"]),
        (["--gpu-mem", "0G"], ["--gpu-mem"]),
        (["--ranks", "0"], ["--ranks 0"]),
        (["--nnodes", "0"], ["--nnodes 0"]),
        (["--ranks", "3", "batch=16"], ["batch=16", "3 ranks", "batch=15"]),
        (["--gpus", "9"], ["--gpus 9: there", "GPU"]),
        (["model=yolo11q.yaml"], ["yolo11q.yaml"]),
        (["imgsz=0"], ["imgsz"]),
        (["epohcs=1"], ["epohcs", "epochs"]),
    ],
)
def test_bad_input(args: list[str], said: list[str], tiny: Path) -> None:
    answer = autotune("doctor", f"data={tiny}", *args)
    assert answer.code == 2, answer
    assert answer.out == ""
    assert answer.err.startswith("error: ")
    assert "Traceback" not in answer.err
    for word in said:
        assert word in answer.err


@pytest.mark.slow
def test_a_model_that_ultralytics_refuses(tiny: Path, tmp_path: Path) -> None:
    model = tmp_path / "broken.yaml"
    model.write_text("nc: 6\nbackbone:\n  - [-1, 1, NoSuchLayer, [8]]\nhead:\n  - [[0], 1, Detect, [nc]]\n")
    answer = autotune("doctor", f"data={tiny}", f"model={model}")
    assert answer.code in (2, 3), answer
    assert answer.err.startswith("error: this job cannot be built: ")
    assert "NoSuchLayer" in answer.err
