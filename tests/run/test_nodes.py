"""Full training over several machines: one torchrun each, which meet at a rendezvous. Real Ultralytics on gloo."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.contract import Nodes, RankRecord, TrialDir, TrialSpec, read_json, write_json
from autotune.run.demo import demo_dataset
from autotune.run.launch import argv, environment
from tests.run.trials import spec

MODEL = str(Path(__file__).parents[1] / "models" / "tiny-detect.yaml")


def job(data: Path, **args: object) -> TrialSpec:
    """One epoch in full, a rank on each machine: two batches a rank, validation, checkpoints, final evaluation."""
    learning = {"batch": 8, "nbs": 8, "epochs": 1, "mosaic": 0.0, "optimizer": "AdamW", "lr0": 0.01}
    asked = spec(data, model=MODEL, val=True, save=True, **learning, **args)  # type: ignore[arg-type]
    return replace(asked, role="train", n_ranks=1)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def launch(asked: TrialSpec, home: Path) -> subprocess.Popen[str]:
    """What `autotune train --nnodes 2` starts on one of the machines: its own trial folder, home and working folder."""
    directory = TrialDir(home / "trials" / "0000")
    directory.path.mkdir(parents=True)
    write_json(directory.spec, asked)
    # Both machines are this one, whose name need not resolve; a user would name the interface between them.
    env = environment(asked, directory, "test-nodes", {**os.environ, "GLOO_SOCKET_IFNAME": "lo"})
    env |= {"YOLO_CONFIG_DIR": str(home / "yolo"), "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
    with (home / "log.txt").open("w") as log:
        return subprocess.Popen(
            argv(asked, directory), cwd=home, env=env, stdout=log, stderr=subprocess.STDOUT, text=True
        )


def wait(launchers: list[subprocess.Popen[str]], homes: list[Path]) -> None:
    try:
        codes = [launcher.wait(300) for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()
    said = "\n".join((home / "log.txt").read_text()[-3000:] for home in dict.fromkeys(homes))
    assert codes == [0] * len(codes), said


def records(*folders: tuple[Path, int]) -> list[RankRecord]:
    return [read_json(TrialDir(home / "trials" / "0000").rank(rank), RankRecord) for home, rank in folders]


@pytest.mark.slow
def test_two_machines_train_one_model(tmp_path: Path) -> None:
    # Fewer validation images than a batch: one rank has none.
    data = demo_dataset(tmp_path / "set", n_train=16, n_val=4)
    older = tmp_path / "runs" / "train" / "weights" / "best.pt"
    older.parent.mkdir(parents=True)
    older.write_text("of an older run, which only rank 0 counts past")
    homes = [tmp_path / "a", tmp_path / "b"]
    knob = {"gradient_as_bucket_view": True}
    asked = job(data, save_dir=None, exist_ok=False, project=str(tmp_path / "runs"), patches=knob, changes=knob)
    endpoint = f"127.0.0.1:{free_port()}"
    places = [Nodes(n_nodes=2, node_rank=i, rdzv_endpoint=endpoint) for i in range(2)]
    launchers = [launch(replace(asked, nodes=place), home) for place, home in zip(places, homes, strict=True)]
    wait(launchers, homes)
    # The rendezvous numbers the machines as they come.
    first = next(home for home in homes if TrialDir(home / "trials" / "0000").rank(0).exists())
    second = homes[1 - homes.index(first)]
    mine, theirs = records((first, 0), (second, 1))
    assert (mine.status, theirs.status) == ("done", "done"), (mine.error, theirs.error)
    assert mine.effective["world_size"] == theirs.effective["world_size"] == 2
    assert mine.effective["ddp"] is True
    log = (first / "log.txt").read_text()
    assert "  gradient_as_bucket_view: True -> True\n" in log, "in effect, though each machine has one rank"
    # Started alike, moved, and ended alike to the bit.
    assert mine.effective["params_at_start"] == theirs.effective["params_at_start"] != mine.effective["params"]
    assert mine.effective["params"] == theirs.effective["params"]
    # Rank 0 wrote the checkpoints into a new folder, and the best of them was validated in the end.
    [run] = [p for p in older.parents[2].iterdir() if p.name != "train"]
    assert len((run / "results.csv").read_text().splitlines()) == 2
    assert f"Validating {run}/weights/best.pt" in log
    assert list(older.parent.iterdir()) == [older]


SHARE = """
import os
from pathlib import Path
import torch.distributed as dist
from autotune.worker.ranks import share_file
dist.init_process_group("gloo")
rank = dist.get_rank()
os.chdir(f"machine{rank}")
share_file(Path("weights/best.pt"))
share_file(Path("weights/none.pt"))
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # as a rank leaves (worker/__main__.py): the interpreter's end may abort in gloo's threads
"""


@pytest.mark.slow
def test_machines_without_a_common_disk_get_the_checkpoint(tmp_path: Path) -> None:
    for rank in range(2):
        (tmp_path / f"machine{rank}" / "weights").mkdir(parents=True)
    best = [tmp_path / f"machine{rank}" / "weights" / "best.pt" for rank in range(2)]
    best[0].write_bytes(b"the best")
    (tmp_path / "share.py").write_text(SHARE)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "share.py"]
    subprocess.run(torchrun, cwd=tmp_path, check=True, timeout=120)
    assert best[1].read_bytes() == best[0].read_bytes() == b"the best"
    assert [len(list(path.parent.iterdir())) for path in best] == [1, 1]
