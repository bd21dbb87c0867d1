"""How long does each epoch of a full training take? Rank 0 writes a line an epoch, for the promise to be judged."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def record_epochs(trainer: Any, path: Path, clock: Callable[[], float] = time.perf_counter) -> None:
    """Let the trainer write `seconds steps_s val_s closed` after each epoch.

    seconds: from the end of the epoch before (of the first: from its start), so that nothing between epochs is lost;
    steps_s: of the training steps; val_s: of the validation, 0 without one; closed: 1 when mosaic was closed.
    """
    recorded = _Epochs(path, clock)
    validate = trainer.validate

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = clock()
        try:
            return validate(*args, **kwargs)
        finally:
            recorded.val_s += clock() - began

    trainer.validate = timed
    trainer.add_callback("on_train_epoch_start", recorded.start)
    trainer.add_callback("on_train_epoch_end", recorded.steps_ended)
    trainer.add_callback("on_fit_epoch_end", recorded.end)


class _Epochs:
    """Marks of the epoch that runs."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._path, self._clock = path, clock
        self._began: float | None = None
        self._last_end: float | None = None
        self._steps_s = 0.0
        self.val_s = 0.0

    def start(self, _trainer: Any) -> None:
        self._began, self.val_s = self._clock(), 0.0

    def steps_ended(self, _trainer: Any) -> None:
        if self._began is not None:
            self._steps_s = self._clock() - self._began

    def end(self, trainer: Any) -> None:
        """The trainer calls this once more after its final evaluation, which is no epoch."""
        if self._began is None:
            return
        now, close = self._clock(), trainer.args.close_mosaic or 0
        seconds = now - (self._began if self._last_end is None else self._last_end)
        closed = int(bool(close) and trainer.epoch >= trainer.epochs - close)
        self._began, self._last_end = None, now
        # A full disk is no reason to end a training for.
        with contextlib.suppress(OSError), self._path.open("a", encoding="ascii") as f:
            f.write(f"{seconds:.6f} {self._steps_s:.6f} {self.val_s:.6f} {closed}\n")
