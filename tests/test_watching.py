"""`autotune watch`: files that grow as a training writes them, and machines that are slow for a known reason."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from autotune.machine.gpu_activity import looking_at
from autotune.report.receipt import Promise
from autotune.watching import Signs, watch, what_to_watch, why
from tests.cli import autotune
from tests.receipts import best_in, receipt_for

REAL = Path(__file__).parent / "goldens" / "trainings" / "three_epochs"
LINES = (REAL / "results.csv").read_text().splitlines(keepends=True)


class FakeTraining:
    """Appends to results.csv whenever the watcher sleeps."""

    def __init__(self, folder: Path, pieces: list[str], *, args: str | None = None) -> None:
        self.folder, self.pieces, self.slept_s = folder, list(pieces), 0.0
        self.args = (REAL / "args.yaml").read_text() if args is None else args

    def sleep(self, seconds: float) -> None:
        self.slept_s += seconds
        if not self.pieces:
            raise KeyboardInterrupt
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "args.yaml").write_text(self.args)
        with (self.folder / "results.csv").open("a") as f:
            f.write(self.pieces.pop(0))


def look(folder: Path, training: FakeTraining, **more: Any) -> tuple[list[str], int]:
    said: list[str] = []
    code = watch(str(folder), say=said.append, sleep=training.sleep, **more)
    return said, code


def test_from_before_the_first_epoch_to_the_last(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    header, first, second, third = LINES
    training = FakeTraining(folder, ["", header[:7], header[7:], first[:4], first[4:], "", second, "", third])
    said, code = look(folder, training)
    assert code == 0
    assert said[0] == f"{folder}: nothing of a training there yet; waiting"
    assert said[1] == f"watching {folder}"
    assert said[2].startswith("no epoch has ended yet")
    assert [line for line in said if line.startswith("epoch ")] == [
        "epoch 1 of 3   18 s an epoch   36 s left",
        "epoch 2 of 3   11 s an epoch   11 s left",
        "epoch 3 of 3   12 s an epoch",
    ], "each said once"
    assert training.pieces == []


def test_once_says_so_where_there_is_nothing(tmp_path: Path) -> None:
    said = autotune("watch", tmp_path / "nowhere", "--once")
    assert (said.code, said.out) == (0, f"{tmp_path / 'nowhere'}: nothing of a training there yet\n")


def test_a_folder_with_something_else_is_told_at_once(tmp_path: Path) -> None:
    """It would be waited for without end."""
    (tmp_path / "notes.txt").write_text("not a training")
    for path, word in ((tmp_path, "holds no training"), (tmp_path / "notes.txt", "notes.txt is a file")):
        said = autotune("watch", path, "--once")
        assert (said.code, said.out) == (2, "")
        assert word in said.err
    run = promised(tmp_path / "elsewhere")
    assert "holds no training" in autotune("watch", tmp_path, "--run", run, "--once").err
    for name in ("train", "train2"):
        (tmp_path / "runs" / "detect" / name).mkdir(parents=True)
        (tmp_path / "runs" / "detect" / name / "args.yaml").write_text(ARGS)
        time.sleep(0.01)
    said = autotune("watch", tmp_path / "runs" / "detect", "--once")
    assert f"give {tmp_path / 'runs' / 'detect' / 'train2'}" in said.err


@pytest.mark.parametrize("early", [[], ["weights"]])
def test_a_folder_that_ultralytics_has_just_made_is_waited_for(tmp_path: Path, early: list[str]) -> None:
    for name in early:
        (tmp_path / name).mkdir()
    said = autotune("watch", tmp_path, "--once")
    assert (said.code, said.out) == (0, f"{tmp_path}: nothing of a training there yet\n")


def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        look(tmp_path / "train", FakeTraining(tmp_path / "train", [LINES[0], LINES[1]]))


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--every", "often"], "--every 'often'"),
        (["--every", "0.2s"], "1s or more"),
        (["--run", "gone"], "winner.json"),
    ],
)
def test_refuses(args: list[str], word: str, tmp_path: Path) -> None:
    said = autotune("watch", tmp_path, "--once", *args)
    assert said.code == 2
    assert word in said.err


ARGS = "model: tiny-detect.yaml\ndata: shapes.yaml\nepochs: 100\nimgsz: 64\nbatch: 8\nwarmup_epochs: 1\ndevice: cpu\n"
CSV = "epoch,time,train/box_loss\n"
PROMISE = Promise(
    epochs=100, mosaic_epoch_s=58.0, closed_epoch_s=50.0, val_s=1.0, save_s=0.5, epoch_end_s=0.5, half_width_frac=0.05
)


def promised(tmp_path: Path) -> Path:
    """A run folder whose winner is the job of ARGS."""
    best = best_in(tmp_path / "results", receipt_for("/d/shapes.yaml", promise=PROMISE))
    (best.parent / "run.json").write_text("{}")
    best.rename(best.parent / "best")
    return best.parent


def test_slower_than_promised_and_why(tmp_path: Path) -> None:
    run, folder = promised(tmp_path), tmp_path / "runs" / "detect" / "train"
    training = FakeTraining(folder, [CSV, "1,95,3\n2,175,3\n3,255,3\n"], args=ARGS)
    with pytest.raises(KeyboardInterrupt):
        look(run, training, here=tmp_path)  # a run folder: the training of its winner is found
    said: list[str] = []
    watch(str(run), once=True, here=tmp_path, say=said.append, sleep=lambda s: None)
    assert said[0] == f"watching {folder}"
    assert said[1] == "epoch 3 of 100   80 s an epoch   2.16 h left"
    assert said[2].startswith("promise not kept: 60.0 s an epoch promised (+-5 %), 80.0 s real")
    assert any(line.startswith("why: ") for line in said)
    beside: list[str] = []
    watch(str(folder), run=str(run), once=True, say=beside.append, sleep=lambda s: None)
    assert beside[1:3] == said[1:3], "the two folders named one by one"


def test_as_fast_as_promised_needs_no_reason(tmp_path: Path) -> None:
    run, folder = promised(tmp_path), tmp_path / "train"
    folder.mkdir()
    (folder / "args.yaml").write_text(ARGS)
    (folder / "results.csv").write_text(CSV + "1,75,3\n2,135,3\n3,195,3\n")
    said: list[str] = []
    watch(str(folder), run=str(run), once=True, say=said.append, sleep=lambda s: None)
    assert said[2].startswith("promise kept: 60.0 s")
    assert not any(line.startswith("why: ") for line in said)


def test_the_newest_training_of_the_winners_job(tmp_path: Path) -> None:
    run = promised(tmp_path)
    assert what_to_watch(str(run), None, tmp_path).training() is None
    for name, text in (("train", ARGS), ("train2", ARGS), ("other", ARGS.replace("imgsz: 64", "imgsz: 32"))):
        folder = tmp_path / "runs" / "detect" / name
        folder.mkdir(parents=True)
        (folder / "args.yaml").write_text(text)
        time.sleep(0.01)
    found = what_to_watch(str(run), None, tmp_path).training()
    assert found is not None
    assert found.folder.name == "train2"


def test_reasons() -> None:
    assert "nothing that can be seen" in why(Signs())
    hot = Signs(slowed=[None, "GPU 0 is slowed down by heat"], crowds=[None, None])
    assert why(hot) == "GPU 0 is slowed down by heat (at 50 % of 2 looks)"
    shared = Signs(crowds=["2 processes compute on GPU 0"], busy=[0.3], cores=[0.99])
    assert why(shared).startswith("2 processes compute on GPU 0, one of them is not this training's")
    loader = Signs(busy=[0.4, 0.42], cores=[0.97], psi_cpu=[45.0])
    assert why(loader) == "GPU 41 % busy, cores 97 % busy, tasks wait for one 45 % of the time: the loader is the limit"
    disk = Signs(busy=[0.4], cores=[0.2], psi_io=[60.0])
    assert why(disk) == "GPU 40 % busy, tasks wait for the disk 60 % of the time: the loader is the limit"
    assert "too few loader workers" in why(Signs(busy=[0.4], cores=[0.2], psi_io=[0.0]))
    assert why(Signs(cores=[0.99], psi_cpu=[50.0])).endswith("the cores are the limit, or somebody else computes here")


def test_gpus_are_looked_at_through_nvml(tmp_path: Path) -> None:
    """Synthetic: the first of two GPUs is too hot and has a second process."""
    from autotune.machine.activity import HostCounters
    from autotune.machine.fake_nvml import FakeNvml, FakeProcess
    from autotune.machine.fake_worlds import throttling

    hot = throttling(since_s=0.0).world(1.0).changed(0, compute=(FakeProcess(pid=1), FakeProcess(pid=2)))
    with looking_at(("GPU-0", "GPU-1"), FakeNvml(lambda t: hot)) as at:
        signs, counters = Signs(), HostCounters()
        now = counters.look()
        signs.add(now, now, ["0", "1"], at.look(), at)
    assert signs.slowed == ["GPU 0 is slowed down by heat, it runs at 1200 MHz"]
    assert signs.crowds == ["2 processes compute on GPU 0"]
    assert signs.busy == [0.97]


@pytest.mark.slow
def test_a_real_training_is_watched_to_its_end(tmp_path: Path, tiny: Path) -> None:
    """Two processes: yolo trains, autotune watches."""
    yolo = shutil.which("yolo")
    assert yolo
    argv = [yolo, "train", "model=yolo11n.yaml", f"data={tiny}", "imgsz=64", "epochs=3", "batch=16", "device=cpu"]
    argv += ["workers=0", "plots=False", f"project={tmp_path}", "name=t"]
    command = [sys.executable, "-m", "autotune", "watch", str(tmp_path / "t"), "--every", "1s"]
    watcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    subprocess.run(argv, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    out, _ = watcher.communicate(timeout=60)
    assert watcher.returncode == 0, out
    said = [line for line in out.splitlines() if line.startswith("epoch ")]
    assert said[-1].startswith("epoch 3 of 3   "), out
    assert "cores " in out


@pytest.mark.slow
def test_ctrl_c_is_exit_code_130(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "autotune", "watch", str(tmp_path / "t"), "--every", "1s"]
    watcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert watcher.stdout is not None
    assert "waiting" in watcher.stdout.readline()
    watcher.send_signal(signal.SIGINT)
    _, err = watcher.communicate(timeout=60)
    assert (watcher.returncode, err) == (130, "")
