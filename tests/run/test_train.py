"""`autotune train`: what the user's Ctrl-C does to a full training. Real processes; a script in place of the worker."""

from __future__ import annotations

import _thread
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from autotune import rerun
from autotune.contract import Gpu, Nodes, TrialDir, TrialSpec, Winner, write_json
from autotune.errors import InputError
from autotune.report.receipt import Promise
from autotune.run import launch
from tests.receipts import best_in, receipt_for

TRAINING = """
    import signal, time
    busy = []
    signal.signal(signal.SIGINT, lambda *_: busy.append("interrupted"))
    with open("last.pt", "w") as f:
        f.write("half of the checkpoint")
        f.flush()
        open("up", "w").close()
        while not busy:
            time.sleep(0.05)
        time.sleep(0.5)
        f.write(", and the other half")
    {then}
"""


def interrupt_once_up(folder: Path) -> None:
    """As Ctrl-C would, once the training is in the middle of its checkpoint."""
    for _ in range(600):
        if (folder / "up").exists():
            _thread.interrupt_main()
            return
        time.sleep(0.05)


@pytest.mark.parametrize("then", ["", "time.sleep(300)"], ids=["ends", "does not end"])
def test_an_interrupted_training_finishes_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    script = tmp_path / "training.py"
    script.write_text(textwrap.dedent(TRAINING.format(then=then)))
    monkeypatch.setattr(launch, "argv", lambda *_: [sys.executable, str(script)])
    monkeypatch.setattr(rerun, "FINISH_S", 3.0 if then else 60.0)
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "winner.json", Winner(task="detect", train_args={}))
    threading.Thread(target=interrupt_once_up, args=(tmp_path,)).start()
    with pytest.raises(KeyboardInterrupt):
        rerun.train(str(tmp_path), {})
    if not then:
        assert (tmp_path / "last.pt").read_text() == "half of the checkpoint, and the other half"
    left = [p for p in psutil.process_iter(["cmdline"]) if str(script) in (p.info["cmdline"] or ())]
    assert left == []


def test_an_interrupted_training_is_held_against_its_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "training.py"
    script.write_text(textwrap.dedent(TRAINING.format(then="")))

    def argv(_: TrialSpec, directory: TrialDir) -> list[str]:
        directory.epochs.write_text("9 8 1 0\n5 4 1 0\n5 4 1 0\n")  # as rank 0 would until the interrupt
        return [sys.executable, str(script)]

    monkeypatch.setattr(launch, "argv", argv)
    monkeypatch.setattr(rerun, "FINISH_S", 60.0)
    monkeypatch.chdir(tmp_path)
    promise = Promise(epochs=100, mosaic_epoch_s=4.0, val_s=1.0, save_s=0.0, epoch_end_s=0.0, half_width_frac=0.02)
    best = best_in(tmp_path, receipt_for("data.yaml", promise=promise))
    threading.Thread(target=interrupt_once_up, args=(tmp_path,)).start()
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        rerun.train(str(best), {}, say=said.append)
    figures = "5.00 s an epoch promised (+-2 %), 5.00 s real"
    assert said == [f"promise kept: {figures} (median of 2; the first left out: it carries the start)"]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ((0, 0, None), "--nnodes 0"),
        ((2, 2, "a:1"), "--node-rank 2 of --nnodes 2"),
        ((2, -1, "a:1"), "--node-rank -1 of --nnodes 2"),
        ((2, 0, None), "--nnodes needs host:port"),
        ((2, 0, "10.0.0.1"), "--rdzv-endpoint 10.0.0.1 is not host:port"),
        ((2, 0, "10.0.0.1:x"), "is not host:port"),
        ((2, 0, "10.0.0.1:99999"), "is not host:port"),
    ],
)
def test_a_place_among_nodes_that_is_none(typed: tuple[int, int, str | None], message: str) -> None:
    with pytest.raises(InputError) as e:
        rerun.nodes(*typed)
    assert message in e.value.message


def test_a_place_among_nodes() -> None:
    assert rerun.nodes(1, 0, None) is None
    assert rerun.nodes(2, 1, "[::1]:29500") == Nodes(n_nodes=2, node_rank=1, rdzv_endpoint="[::1]:29500")


def spec_of_training(
    monkeypatch: pytest.MonkeyPatch, folder: Path, winner: Winner, place: Nodes | None = None, **args: Any
) -> TrialSpec:
    """What `autotune train` starts, on a machine with four GPUs."""
    gpus = tuple(Gpu(index=i, uuid=f"GPU-{i}", name="H100", mem_bytes=80 << 30) for i in range(4))
    machine = replace(rerun.read_machine(), gpus=gpus)
    specs: list[TrialSpec] = []
    monkeypatch.setattr(rerun, "read_machine", lambda: machine)
    monkeypatch.setattr(launch, "argv", lambda spec, _: specs.append(spec) or [sys.executable, "-c", ""])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.chdir(folder)
    write_json(folder / "winner.json", winner)
    assert rerun.train(str(folder), args, place) == 0
    return specs[0]


def test_full_training_on_the_winners_ranks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    winner = Winner(task="detect", train_args={"batch": 64, "device": "0,2"}, n_ranks=2)
    asked = spec_of_training(monkeypatch, tmp_path, winner)
    assert (asked.n_ranks, asked.gpus, asked.train_args["device"]) == (2, ("GPU-0", "GPU-2"), "0,1")
    asked = spec_of_training(monkeypatch, tmp_path, winner, device="0,1,2,3")
    assert (asked.n_ranks, asked.gpus) == (4, ("GPU-0", "GPU-1", "GPU-2", "GPU-3"))
    asked = spec_of_training(monkeypatch, tmp_path, winner, device=1)
    assert (asked.n_ranks, asked.gpus, asked.train_args["device"]) == (1, (), 1)
    asked = spec_of_training(monkeypatch, tmp_path, winner, device="cpu")
    assert (asked.n_ranks, asked.gpus) == (1, ())
    assert "4 ranks share batch=64, 16 each; 32 each were measured (batch=128 keeps those" in caplog.text
    with pytest.raises(InputError, match="batch=64 does not divide by 3 ranks"):
        spec_of_training(monkeypatch, tmp_path, winner, device="0,1,2")
    with pytest.raises(InputError, match="there are 4 visible GPUs"):
        spec_of_training(monkeypatch, tmp_path, winner, device="0,7")


def test_full_training_on_nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    winner = Winner(task="detect", train_args={"batch": 64, "device": "cpu"}, n_ranks=2)
    place = Nodes(n_nodes=2, node_rank=1, rdzv_endpoint="10.0.0.1:29500")
    assert spec_of_training(monkeypatch, tmp_path, winner, place).nodes == place
    with pytest.raises(InputError, match="batch=6 does not divide by 4 ranks"):
        spec_of_training(monkeypatch, tmp_path, winner, place, batch=6)
    for batch in ("abc", None, [1], -1, 0, 0.7):
        with pytest.raises(InputError, match="must be a whole number of at least 1"):
            spec_of_training(monkeypatch, tmp_path, winner, place, batch=batch)
    alone = Winner(task="detect", train_args={"batch": 64, "device": "cpu"}, n_ranks=1)
    assert spec_of_training(monkeypatch, tmp_path, alone, batch=-1).train_args["batch"] == -1, "YOLO judges"
