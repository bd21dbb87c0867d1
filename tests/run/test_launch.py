"""Command and environment of a trial."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.contract import Nodes, TrialDir
from autotune.contract.folders import LONGEST_TMPDIR
from autotune.run.launch import RUN_TAG, TAG, argv, environment
from tests.run.trials import spec


def test_one_rank_is_this_python_and_several_are_torchrun(tmp_path: Path) -> None:
    directory = TrialDir(tmp_path / "run" / "trials" / "0001")
    worker = ["-m", "autotune.worker", str(directory.path)]
    assert argv(spec("demo"), directory) == [sys.executable, *worker]
    assert argv(replace(spec("demo"), n_ranks=2), directory) == [
        *(sys.executable, "-m", "autotune.worker.agent"),
        *("--standalone", "--nproc-per-node", "2", "--max-restarts", "0"),
        *worker,
    ]


def test_several_nodes_meet_at_an_endpoint(tmp_path: Path) -> None:
    directory = TrialDir(tmp_path / "run" / "trials" / "0001")
    place = Nodes(n_nodes=2, node_rank=1, rdzv_endpoint="10.0.0.1:29500")
    said = argv(replace(spec("demo"), nodes=place), directory)
    assert "--standalone" not in said
    options = dict(zip(said[3:-3:2], said[4:-3:2], strict=True))
    assert options["--nnodes"] == "2"
    assert options["--node-rank"] == "1"
    assert options["--rdzv-endpoint"] == "10.0.0.1:29500"
    assert options["--nproc-per-node"] == "1"
    assert "GLOO_SOCKET_IFNAME" not in environment(replace(spec("demo"), nodes=place), directory, "tag", {})
    assert environment(replace(spec("demo"), n_ranks=2), directory, "tag", {})["GLOO_SOCKET_IFNAME"] == "lo"


def test_a_full_training_sees_what_the_user_sees_unless_its_ranks_need_their_own_gpus(tmp_path: Path) -> None:
    directory, shell = TrialDir(tmp_path / "run" / "trials" / "0001"), {"CUDA_VISIBLE_DEVICES": "3,1"}
    full = replace(spec("demo"), role="train")
    assert environment(full, directory, "tag", shell)["CUDA_VISIBLE_DEVICES"] == "3,1"
    assert environment(replace(full, gpus=("GPU-1",)), directory, "tag", shell)["CUDA_VISIBLE_DEVICES"] == "GPU-1"


def test_a_launchers_leftovers_are_not_inherited(tmp_path: Path) -> None:
    left = {
        "RANK": "3",
        "LOCAL_RANK": "3",
        "WORLD_SIZE": "8",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "29500",
        "TORCHELASTIC_RUN_ID": "x",
        "PET_NPROC_PER_NODE": "8",
        "GROUP_WORLD_SIZE": "2",
    }
    env = environment(spec("demo"), TrialDir(tmp_path / "t"), "tag", {**left, "HOME": "/home/me"})
    assert not set(left) & set(env)
    assert env["HOME"] == "/home/me"


def test_marks_of_the_trial_and_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    env = environment(spec("demo"), TrialDir(tmp_path / "link" / "run" / "trials" / "0001"), "abc", {})
    assert env[TAG] == "abc"
    assert env[RUN_TAG] == str(tmp_path / "real" / "run")
    assert env["AUTOTUNE_PARENT_PID"] == str(os.getpid())


def test_gloo_ranks_of_one_machine_need_no_network(tmp_path: Path) -> None:
    several = replace(spec("demo"), n_ranks=2)
    assert environment(several, TrialDir(tmp_path / "t"), "abc", {})["GLOO_SOCKET_IFNAME"] == "lo"
    mine = {"GLOO_SOCKET_IFNAME": "eth7"}
    assert environment(several, TrialDir(tmp_path / "t"), "abc", mine)["GLOO_SOCKET_IFNAME"] == "eth7"


@pytest.mark.parametrize(
    ("shell", "threads"), [({}, "1"), ({"OMP_NUM_THREADS": ""}, "1"), ({"OMP_NUM_THREADS": "3"}, "3")]
)
def test_torch_is_loaded_with_the_threads_that_ultralytics_gives_it(
    tmp_path: Path, shell: dict[str, str], threads: str
) -> None:
    # Plain YOLO imports ultralytics first, which sets 1 before torch is loaded; the worker imports torch first.
    directory = TrialDir(tmp_path / "t")
    assert environment(spec("none"), directory, "tag", shell)["OMP_NUM_THREADS"] == threads
    tuned = spec("none", env={"OMP_NUM_THREADS": "4"})
    assert environment(tuned, directory, "tag", shell)["OMP_NUM_THREADS"] == "4"


def test_a_private_tmpdir_that_is_too_long_for_a_socket_moves_and_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = TrialDir(Path("/x/run/trials/0001")), TrialDir(tmp_path / ("long" * 20) / "0001")
    assert near.tmp == Path("/x/run/trials/0001/tmp")
    assert len(str(far.tmp)) <= LONGEST_TMPDIR
    assert far.tmp == TrialDir(far.path).tmp != TrialDir(far.path.with_name("0002")).tmp
    kept = far.tmp
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert far.tmp == kept, "another shell, or the trial itself, has another TMPDIR"


def test_an_empty_variable_of_nccl_is_not_there(tmp_path: Path) -> None:
    base = {"NCCL_ALGO": "Ring", "NCCL_SOCKET_IFNAME": "eth0"}
    asked = spec("demo", env={"NCCL_ALGO": "", "PYTORCH_CUDA_ALLOC_CONF": ""})
    env = environment(asked, TrialDir(tmp_path / "run" / "trials" / "0001"), "t", base)
    assert "NCCL_ALGO" not in env
    assert env["NCCL_SOCKET_IFNAME"] == "eth0"


def test_an_empty_value_of_a_knob_unsets_what_the_shell_exports(tmp_path: Path) -> None:
    shell = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "NCCL_ALGO": "", "MINE": ""}
    asked = spec("demo", env={"PYTORCH_CUDA_ALLOC_CONF": "", "PYTORCH_ALLOC_CONF": ""})
    env = environment(asked, TrialDir(tmp_path / "t"), "tag", shell)
    assert not {"PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "NCCL_ALGO"} & env.keys()
    assert env["MINE"] == "", "the user's own"
