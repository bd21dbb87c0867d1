"""Which container, and which environment variables are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.machine.container import container_of
from autotune.machine.environment import speed_environment
from tests.machine.fakes import fabricate


@pytest.mark.parametrize(
    ("files", "env", "name"),
    [
        ({}, {}, None),
        ({".dockerenv": ""}, {}, "docker"),
        ({"run/.containerenv": 'engine="podman-5.0"'}, {}, "podman"),
        ({".dockerenv": ""}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        ({"proc/self/cgroup": "5:cpu:/kubepods/burstable/pod1\n"}, {}, "kubernetes"),
        ({"proc/self/cgroup": "0::/docker/1234\n"}, {}, "docker"),
        ({"proc/self/cgroup": "0::/user.slice\n"}, {}, None),
        ({"run/systemd/container": "systemd-nspawn\n"}, {}, "systemd-nspawn"),
        ({}, {"container": "oci"}, "container"),
    ],
)
def test_which_container(tmp_path: Path, files: dict[str, str | None], env: dict[str, str], name: str | None) -> None:
    assert container_of(fabricate(tmp_path, files, env=env)) == name


def test_variables_that_matter_are_kept_without_secrets_or_the_users_name() -> None:
    env = {
        "HOME": "/home/alice",
        "PATH": "/home/alice/bin",
        "NCCL_DEBUG": "INFO",
        "OMP_NUM_THREADS": "4",
        "LD_PRELOAD": "/home/alice/lib/libjemalloc.so:/home/alice2/x.so",
        "TORCH_TOKEN": "hunter2",
        "NVIDIA_API_KEY": "hunter2",
        "CUDA_VISIBLE_DEVICES": "",
        "WANDB_API_KEY": "hunter2",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
    }
    assert speed_environment(env) == {
        "LD_PRELOAD": "~/lib/libjemalloc.so:/home/alice2/x.so",
        "NCCL_DEBUG": "INFO",
        "OMP_NUM_THREADS": "4",
    }
