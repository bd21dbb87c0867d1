"""Lines of a full training's epochs: a trainer's callbacks in their order, by a clock of our own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from autotune.worker.epochs import record_epochs


class Trainer:
    """Calls back as Ultralytics' trainer does (engine/trainer.py, _do_train and final_eval)."""

    def __init__(self, epochs: int, close_mosaic: int) -> None:
        self.now = 0.0
        self.epochs, self.epoch, self.args = epochs, 0, SimpleNamespace(close_mosaic=close_mosaic)
        self.callbacks: dict[str, list[Any]] = {}

    def add_callback(self, event: str, callback: Any) -> None:
        self.callbacks.setdefault(event, []).append(callback)

    def run(self, event: str, *, takes: float = 0.0) -> None:
        self.now += takes
        for callback in self.callbacks[event]:
            callback(self)

    def validate(self) -> str:
        self.now += 2.0
        return "metrics"

    def train(self, *, restart: bool = False) -> None:
        self.now = 5.0
        for epoch in range(self.epochs):
            self.epoch = epoch
            self.run("on_train_epoch_start", takes=0.25 if self.epoch else 0.0)
            if restart and not self.epoch:  # out of memory: the epoch begins again
                self.run("on_train_epoch_start", takes=100.0)
            self.run("on_train_epoch_end", takes=10.0)
            assert self.validate() == "metrics"
            self.run("on_fit_epoch_end", takes=0.5)
        self.run("on_fit_epoch_end", takes=30.0)  # after the final evaluation


def lines_of(path: Path) -> list[list[float]]:
    return [[float(word) for word in line.split()] for line in path.read_text().splitlines()]


def test_a_line_an_epoch(tmp_path: Path) -> None:
    trainer = Trainer(epochs=3, close_mosaic=1)
    record_epochs(trainer, tmp_path / "epochs.txt", clock=lambda: trainer.now)
    trainer.train()
    assert lines_of(tmp_path / "epochs.txt") == [
        [12.5, 10.0, 2.0, 0],
        [12.75, 10.0, 2.0, 0],
        [12.75, 10.0, 2.0, 1],
    ]


def test_an_epoch_that_began_again_and_a_job_that_never_closes(tmp_path: Path) -> None:
    trainer = Trainer(epochs=2, close_mosaic=0)
    record_epochs(trainer, tmp_path / "epochs.txt", clock=lambda: trainer.now)
    trainer.train(restart=True)
    assert lines_of(tmp_path / "epochs.txt") == [[12.5, 10.0, 2.0, 0], [12.75, 10.0, 2.0, 0]]


def test_a_folder_that_is_gone_ends_no_training(tmp_path: Path) -> None:
    trainer = Trainer(epochs=1, close_mosaic=0)
    record_epochs(trainer, tmp_path / "gone" / "epochs.txt", clock=lambda: trainer.now)
    trainer.train()
