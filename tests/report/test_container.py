"""Dockerfile, compose.yaml, k8s.yaml and constraints.txt: what stands in them, and that their own tools accept them."""

import dataclasses
import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import autotune.report.export as exporting
from autotune.contract import Machine, RunInfo, Winner
from autotune.errors import InputError
from autotune.machine.distributions import distributions
from autotune.report.container import Container, constraints_txt, container_of, dockerfile, shared_memory_bytes
from autotune.report.container_yaml import compose_yaml, k8s_yaml
from autotune.report.export_readme import docker_run

from .test_export import BASE, PATCHED, SENTENCE, make_info, make_run

GPU = {"device": "0,1", "gpus": ("GPU-a", "GPU-b"), "n_ranks": 2}
VERSIONS = {"python": "3.11.7", "autotune": "0.1.0", "torch": "2.15.0", "ultralytics": "8.4.190"}
MACHINE = Machine(
    hostname="h", cpu="c", n_cores=64, n_cores_host=64, ram_bytes=1, shm_bytes=None, driver="580.65", gpus=()
)


def winner(**changes) -> Winner:
    args = {"model": "yolo11n.yaml", "data": "/sets/a/data.yaml", "imgsz": 640, "batch": 16, "workers": 8}
    base = Winner(task="detect", train_args=args | {"device": "cpu"})
    return dataclasses.replace(base, **changes)


def made(info: RunInfo, of: Winner, machine: Machine | None = MACHINE) -> Container:
    return container_of(info, of, machine, SENTENCE)


def two_gpus() -> Container:
    info = make_info(**GPU, versions=VERSIONS, data_folders=("/sets/a",), distributions={"torch": "2.15.0"})
    return made(info, winner(n_ranks=2, train_args=winner().train_args | {"device": "0,1"}))


def test_shared_memory_is_the_formula_of_knobs_1_6():
    """Its own example: 8 ranks, 64 images of 640 each, 8 workers: 19 GiB train; 38 GiB more for validation."""
    eight = winner(n_ranks=8, train_args=winner().train_args | {"batch": 512, "val": False})
    info = make_info(gpus=tuple(f"GPU-{i}" for i in range(8)), n_ranks=8)
    big = dataclasses.replace(MACHINE, n_cores_host=256)
    train = 8 * 8 * 4 * 64 * 3 * 640 * 640
    assert train / 2**30 == pytest.approx(19, abs=0.5)
    assert shared_memory_bytes(eight, info, big) == -int(-1.2 * train // 2**30) * 2**30
    both = dataclasses.replace(eight, train_args=eight.train_args | {"val": True})
    assert shared_memory_bytes(both, info, big) == -int(-1.2 * 3 * train // 2**30) * 2**30
    # With 64 cores a rank has 8 workers at most, so validation has 8 and not 16.
    assert shared_memory_bytes(both, info, MACHINE) == -int(-1.2 * 2 * train // 2**30) * 2**30
    more = dataclasses.replace(eight, patches={"prefetch_factor": 8})
    assert shared_memory_bytes(more, info, big) == -int(-1.2 * 2 * train // 2**30) * 2**30


def test_shared_memory_of_small_and_odd_jobs():
    assert shared_memory_bytes(winner(train_args={"workers": 0}), make_info(), MACHINE) == 1 << 30
    floats = winner(task="classify", train_args=winner().train_args | {"batch": 256, "val": False})
    assert shared_memory_bytes(floats, make_info(), MACHINE) == -int(-1.2 * 8 * 4 * 256 * 12 * 640**2 // 2**30) << 30
    ram = winner(train_args=winner().train_args | {"cache": "ram", "workers": 0})
    cached = make_info(n_images=10_000, versions=VERSIONS | {"python": "3.14.2"})
    assert shared_memory_bytes(ram, cached, MACHINE) == -int(-1.2 * 2 * 10_000 * 3 * 640**2 // 2**30) << 30
    assert shared_memory_bytes(ram, dataclasses.replace(cached, versions=VERSIONS), MACHINE) == 1 << 30


def test_constraints_are_exact_and_can_be_had_from_an_index():
    info = make_info(distributions={"torch": "2.15.0", "numpy": "2.4.6", "nvidia-cublas": "13.4"})
    assert constraints_txt(info) == "numpy==2.4.6\nnvidia-cublas==13.4\ntorch==2.15.0\n"
    local = make_info(
        distributions={"torch": "2.9.0+cu126", "nvidia-cublas-cu12": "1", "nvidia-ml-py": "13", "triton": "3"}
    )
    assert constraints_txt(local) == "nvidia-ml-py==13\ntorch==2.9.0\n"
    assert "cu126" in dockerfile(made(local, winner()))
    before = make_info(versions=VERSIONS | {"cuda": "13.2", "cudnn": "9.26.0.51", "nccl": "2.30.7"})
    assert constraints_txt(before) == "torch==2.15.0\nultralytics==8.4.190\n"


def test_the_distributions_are_those_that_a_training_imports():
    found = distributions()
    assert {"torch", "torchvision", "ultralytics", "numpy", "opencv-python", "cloudpickle", "optuna"} <= set(found)
    assert not {"pytest", "ruff", "yolo-autotune"} & set(found), "not what only tests need, nor ourselves"
    assert found["torch"] == importlib.metadata.version("torch")


def test_dockerfile_of_a_gpu_job():
    lines = dockerfile(two_gpus()).splitlines()
    text = "\n".join(lines)
    assert SENTENCE in lines[0]
    assert "FROM python:3.11.7-slim" in lines
    assert all(f" {name}" in text for name in ("gcc", "python3-dev", "numactl", "tini"))
    assert "580.65" in text
    assert "whl" not in text, "plain YOLO starts it"
    assert [line for line in lines if line.startswith("USER ")] == ["USER 1000"]
    entry = json.loads(lines[-1].removeprefix("ENTRYPOINT "))
    assert entry == ["tini", "-g", "--", "bash", "/opt/tuned/launch.sh", "device=0,1", "project=/runs"]
    assert "AUTOTUNE_GPUS=0,1" in text


@pytest.mark.parametrize("how", [{"patches": {"workers": 1}}, {"n_ranks": 2}])
def test_what_plain_yolo_cannot_start_needs_our_wheel(how):
    container = made(make_info(versions=VERSIONS), winner(**how))
    text = dockerfile(container)
    assert "COPY constraints.txt yolo_autotune-0.1.0-py3-none-any.whl ./" in text
    assert " /opt/tuned/yolo_autotune-0.1.0-py3-none-any.whl" in text
    assert "GPU" not in text.replace("no GPU is asked for", "")
    entry = json.loads(text.splitlines()[-1].removeprefix("ENTRYPOINT "))
    assert entry[-1] == "project=/runs", "no device= on a CPU"


def test_compose():
    c = two_gpus()
    service = yaml.safe_load(compose_yaml(c))["services"]["train"]
    assert service["shm_size"] == f"{c.shm_bytes >> 30}gb"
    assert service["ulimits"] == {"memlock": -1, "stack": 67108864, "nofile": 65536}
    (devices,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert devices == {"driver": "nvidia", "device_ids": ["GPU-a", "GPU-b"], "capabilities": ["gpu"]}
    data, results = service["volumes"]
    assert (data["source"], data["target"], data["read_only"]) == ("/sets/a", "/sets/a", True)
    assert results["target"] == "/runs"
    assert "read_only" not in results
    on_cpu = yaml.safe_load(compose_yaml(made(make_info(), winner())))["services"]["train"]
    assert "deploy" not in on_cpu


def test_k8s():
    c = two_gpus()
    job = yaml.safe_load(k8s_yaml(c))
    pod = job["spec"]["template"]["spec"]
    (train,) = pod["containers"]
    assert (job["apiVersion"], job["kind"], pod["restartPolicy"]) == ("batch/v1", "Job", "Never")
    assert train["resources"]["limits"] == {"nvidia.com/gpu": 2}
    volumes = {v["name"]: v for v in pod["volumes"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": f"{c.shm_bytes >> 30}Gi"}
    mounts = {m["name"]: m["mountPath"] for m in train["volumeMounts"]}
    assert mounts == {"shm": "/dev/shm", "results": "/runs", "data-1": "/sets/a"}
    assert set(mounts) == set(volumes)


def test_what_is_mounted():
    args = winner().train_args | {"model": "/w/best.pt", "pretrained": "/sets/a/w.pt"}
    c = made(make_info(data_folders=("/sets/a", "/big/images")), winner(train_args=args))
    assert [(m.path, m.read_only) for m in c.mounts] == [("/sets/a", True), ("/big/images", True), ("/w/best.pt", True)]
    folders = [
        m["mountPath"] for m in yaml.safe_load(k8s_yaml(c))["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    ]
    assert "/w" in folders, "a claim is mounted as a folder"
    disk = made(make_info(data_folders=("/sets/a",)), winner(train_args=winner().train_args | {"cache": "disk"}))
    assert not disk.mounts[0].read_only, "cache=disk writes beside the images"
    before = made(make_info(), winner())
    assert [m.path for m in before.mounts] == ["/sets/a"], "a run that recorded no folders"


def test_a_relative_path_in_the_datasets_yaml_has_its_start_in_the_image():
    text = dockerfile(made(make_info(datasets_dir="/my sets"), winner()))
    run = next(line for line in text.splitlines() if line.startswith('RUN ["sh"'))
    assert json.loads(run.removeprefix("RUN "))[-1] == "/my sets"
    assert 'RUN ["sh"' not in dockerfile(made(make_info(), winner()))


def test_the_name_is_one_that_docker_and_kubernetes_take():
    for name in ("2026-11-23_1405_yolo26n_coco_4xH100", "Größe $(x) --", "-" * 90, "x" * 90):
        found = made(make_info(name=name), winner()).name
        assert found.startswith("autotune")
        assert len(found) <= 50
        assert found == found.strip("-").lower()
        assert set(found) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


@pytest.mark.system
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("torch", ["2.15.0", "2.9.0+cu126"])
def test_hadolint_is_clean(tmp_path, own, gpu, torch):
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    assert hadolint, "pip install -e '.[test]'"
    info = make_info(
        **(GPU if gpu else {}), versions=VERSIONS, distributions={"torch": torch}, datasets_dir="/a 'b\" $c"
    )
    text = dockerfile(made(info, winner(patches={"workers": 1} if own else {})))
    done = subprocess.run([hadolint, "-"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_docker_run_names_the_gpus_and_the_paths():
    text = docker_run(two_gpus())
    assert """--gpus '"device=GPU-a,GPU-b"'""" in text
    assert "--mount type=bind,source=/sets/a,target=/sets/a,readonly" in text
    assert text.endswith(two_gpus().name)


@pytest.mark.parametrize("where", ["check_with_yolo", "launch_sh", "dockerfile", "k8s_yaml", "readme"])
def test_an_export_that_is_interrupted_leaves_the_one_before_as_it_was(tmp_path, monkeypatch, where):
    run = make_run(tmp_path / "run", [BASE, PATCHED], make_info(), 1)
    monkeypatch.setattr(exporting, "check_with_yolo", lambda _: None)
    before = {p.name: p.read_bytes() for p in exporting.export(run).iterdir()}

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, where, stop)
    with pytest.raises(KeyboardInterrupt):
        exporting.export(run)
    assert {p.name: p.read_bytes() for p in run.best.iterdir()} == before
    with pytest.raises(KeyboardInterrupt):
        exporting.export(run, out=tmp_path / "new" / "own")
    assert not (tmp_path / "new" / "own").exists()
    assert not [p for folder in (run.path, tmp_path / "new") for p in folder.iterdir() if p.name.startswith(".")]


def test_what_the_user_put_there_is_not_replaced(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", [BASE, PATCHED], make_info(), 1)
    monkeypatch.setattr(exporting, "check_with_yolo", lambda _: None)
    wheel = exporting.export(run) / "yolo_autotune-0.1.0-py3-none-any.whl"
    wheel.touch()
    with pytest.raises(InputError, match=wheel.name):
        exporting.export(run)
    assert wheel.exists()
