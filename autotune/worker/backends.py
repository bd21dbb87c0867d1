"""Which trainer runs inside the trial? Backend protocol; name -> module."""

from __future__ import annotations

import importlib
from typing import Final, Protocol

from autotune.contract import TrialSpec
from autotune.worker.recorder import Recorder


class Backend(Protocol):
    """What a trainer must offer to be measured; one object per process."""

    def build(self, spec: TrialSpec) -> None:
        """Import libraries and make the trainer ready."""

    def train(self, recorder: Recorder) -> None:
        """Train, calling `recorder.step` after each batch, until it returns True (or to the end).

        At that moment, still in the measured window, it sets `recorder.effective` to what is in effect.
        """

    def close(self) -> None:
        """Let go of loader workers and the like."""


BACKENDS: Final[dict[str, str]] = {
    "yolo": "autotune.worker.yolo",
    "synthetic": "autotune.worker.synthetic",
}


def make_backend(name: str, recorder: Recorder) -> Backend:
    """The backend of this name; its module has `make(recorder) -> Backend`.

    Raises:
        KeyError: no such backend.
    """
    backend: Backend = importlib.import_module(BACKENDS[name]).make(recorder)
    return backend
