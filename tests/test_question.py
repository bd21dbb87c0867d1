"""A request that is understood: the job as it would run in the user's own shell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import autotune.question as question
from autotune.contract import Gpu, Transport
from autotune.errors import InputError
from autotune.port import SpacePort
from autotune.question import Request, understand


@pytest.mark.parametrize(("shown", "workers"), [(None, 4), ("2", 8), ("0,1", 8), ("0,1,2,3,4", 6)])
def test_workers_are_those_of_the_users_shell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shown: str | None, workers: int
) -> None:
    """Eight GPUs, 32 cores, device=0: YOLO starts min(8, 32 // GPUs that it sees) workers, a trial sees one GPU."""
    gpus = tuple(Gpu(index=i, uuid=f"GPU-{i}", name="H100", mem_bytes=80 << 30) for i in range(8))
    machine = replace(question.read_machine(), n_cores_host=32, n_cores=32, gpus=gpus)
    monkeypatch.setattr(question, "read_machine", lambda: machine)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    asked = understand(Request(pairs=("device=0", "workers=8"), dry_run=True, out=str(tmp_path)))
    assert asked.ctx.train_args["workers"] == workers
    assert asked.job["workers"] == workers
    assert asked.user["workers"] == 8


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six H100 and two A100."""
    names = ["H100"] * 6 + ["A100"] * 2
    gpus = tuple(Gpu(index=i, uuid=f"GPU-{i}", name=name, mem_bytes=80 << 30) for i, name in enumerate(names))
    machine = replace(question.read_machine(), n_cores_host=32, n_cores=32, gpus=gpus)
    monkeypatch.setattr(question, "read_machine", lambda: machine)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("eight")
def test_several_gpus(tmp_path: Path) -> None:
    asked = understand(Request(gpus="4", dry_run=True, out=str(tmp_path)))
    assert (asked.device, asked.ctx.n_ranks) == ("0,1,2,3", 4)
    assert "on 4 x H100" in asked.headline
    assert asked.notes == ()
    assert asked.ctx.train_args["workers"] == 4, "32 cores over the eight GPUs that the user's shell sees"
    asked = understand(Request(pairs=("device=6,7",), dry_run=True, out=str(tmp_path)))
    assert (asked.gpus, asked.ctx.n_ranks) == (("GPU-6", "GPU-7"), 2)
    assert "on 2 x A100" in asked.headline


@pytest.mark.usefixtures("eight")
def test_mixed_gpus_are_warned_of(tmp_path: Path) -> None:
    (note,) = understand(Request(gpus="all", dry_run=True, out=str(tmp_path))).notes
    assert "6 x H100 + 2 x A100" in note


def test_ranks_on_the_cpu(tmp_path: Path) -> None:
    asked = understand(Request(ranks=2, pairs=("device=cpu",), dry_run=True, out=str(tmp_path)))
    assert (asked.device, asked.gpus, asked.ctx.n_ranks) == ("cpu", (), 2)
    assert "2 ranks" in asked.headline


def test_an_assumed_transport_is_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--assume-transport tcp is not known"):
        understand(Request(assume_transport="tcp", dry_run=True, out=str(tmp_path)))
    with pytest.raises(InputError, match="this job has one rank"):
        understand(Request(assume_transport="socket", dry_run=True, out=str(tmp_path)))
    with pytest.raises(InputError, match="ranks on a CPU do not use NCCL"):
        understand(Request(assume_transport="socket", ranks=2, pairs=("device=cpu",), dry_run=True, out=str(tmp_path)))


def test_the_space_is_prepared_with_what_is_assumed_and_with_what_was_seen(tmp_path: Path) -> None:
    asked = understand(Request(gpus="1", dry_run=True, out=str(tmp_path), space="full"))
    ctx = replace(asked.ctx, n_ranks=2, device="cuda", transports=frozenset({"NET/Socket"}))
    port = SpacePort(asked.space, ctx, "same")
    assert "nccl_socket" in port.prepare({}, None).domain
    seen = port.prepare({}, None, transport=Transport(pairs={"0-1": "SHM"}))
    assert {"nccl_socket", "nccl_p2p_level"} <= seen.domain.keys()
    assert "InfiniBand" in seen.frozen["nccl_ib_qps"]


def test_weights_named_from_this_folder_are_found_from_any_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A trial runs in its own folder, and launch.sh is started from anywhere."""
    (tmp_path / "own.pt").touch()
    monkeypatch.chdir(tmp_path)
    asked = understand(Request(pairs=("pretrained=own.pt",), dry_run=True, out=str(tmp_path)))
    assert asked.job["pretrained"] == str(tmp_path / "own.pt")
    again = understand(Request(pairs=("pretrained=false",), dry_run=True, out=str(tmp_path)))
    assert again.job["pretrained"] is False
