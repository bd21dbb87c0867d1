"""Who else hears what a search measures? --track: an observer for W&B or MLflow that the measurements do not feel.

A tracker's library runs in a process of its own (autotune/tracking.py). While a trial runs that process waits for its
next event and W&B's service is not running; it works between two trials, and the next one starts when it has finished.
The search has a little patience for that. Then it keeps what happens for the end, when nothing is measured any more.
What a tracker raises, where it hangs and what it starts are its own: it is switched off, and the search goes on.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
import uuid
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import autotune
from autotune.contract import Event, RunEnded, RunStarted, TrialProgress, TrialStarted, to_dict
from autotune.errors import InputError
from autotune.run.launch import RUN_TAG, TAG
from autotune.run.supervise import kill_tree, own_children

log = logging.getLogger(__name__)

TRACKERS: Final = ("wandb", "mlflow")
"""Their names, which are those of the extras and of the modules."""
PROGRESS_S: Final = 5.0
"""Of what a running trial measures, one event in so many seconds is passed on."""
PATIENCE_FRAC: Final = 0.05
"""The share of the budget that the search waits for one tracker, all together."""
LEAST_PATIENCE_S: Final = 20.0
"""Of a short budget: the imports and MLflow's first database took 4 s, on a busy machine several times that."""
LAST_PATIENCE_S: Final = 60.0
"""After the report is written."""


def parse_track(text: str | None) -> tuple[str, ...]:
    """`wandb,mlflow` -> the names, each once.

    Raises:
        InputError: one that is not known, or whose package is not installed.
    """
    names = tuple(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"--track {name} is not known", f"use {' or '.join(TRACKERS)}, or both with a comma")
        if find_spec(name) is None:
            raise InputError(f"--track {name}: {name} is not installed", f"pip install 'yolo-autotune[{name}]'")
    return names


class Tracker:
    """Passes events on to one tracker; a context manager that ends its process.

    Args:
        name: one of TRACKERS.
        folder: the run folder; run.json stands in it, and what the tracker prints goes to tracker_NAME.txt there.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder.resolve()
        self._log = self._folder / f"tracker_{name}.txt"
        self._patience_s = LEAST_PATIENCE_S
        self._progress_s = 0.0
        self._kept: list[Event] | None = None
        """For the end, once the patience is used up."""
        self._n_unanswered = 0
        self._answers = b""
        self._tag = uuid.uuid4().hex
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except OSError as e:
            self._switch_off(e)
        return self

    def _start(self) -> None:
        package = str(Path(autotune.__file__).resolve().parents[1])
        path = os.pathsep.join(p for p in (package, os.environ.get("PYTHONPATH", "")) if p)
        env = {**os.environ, "PYTHONPATH": path, TAG: self._tag, RUN_TAG: str(self._folder)}
        self._socket, theirs = socket.socketpair()
        with theirs, self._log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "autotune.tracking", self.name, str(self._folder)],
                env=env,
                stdin=theirs.fileno(),
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, event: Event) -> None:
        """Pass an event on; before a trial starts, and at the end, wait until all of them have been dealt with."""
        if self._socket is None or not self._wanted(event):
            return
        try:
            if isinstance(event, RunEnded):
                self._patience_s = LAST_PATIENCE_S
                self._send(*(self._kept or ()), event)
                if not self._answered():
                    raise TimeoutError(f"it was not ready {LAST_PATIENCE_S:.0f} s after the report")
            elif self._kept is not None:
                self._kept.append(event)
            else:
                self._pass_on(event)
        except OSError as e:
            self._switch_off(e)

    def _pass_on(self, event: Event) -> None:
        self._send(event)
        if isinstance(event, RunStarted):
            self._patience_s = max(LEAST_PATIENCE_S, PATIENCE_FRAC * event.budget_s)
        elif isinstance(event, TrialStarted) and not self._answered():
            self._kept = []
            log.warning("%s is slow: from trial %s on its runs are written after the report", self.name, event.number)

    def _switch_off(self, why: OSError) -> None:
        log.warning("%s is switched off, the search goes on without it: %s (see %s)", self.name, why, self._log)
        self.close()

    def close(self) -> None:
        """End the process and what it started; may be called more than once."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            others = own_children() - {self._process.pid}
            kill_tree(self._process, self._tag, grace_s=0.0, spare=others)
            self._process = None

    def _wanted(self, event: Event) -> bool:
        """Is it worth waking the tracker while a trial runs?"""
        if not isinstance(event, TrialProgress):
            return True
        if event.images_per_s is None or event.t_s < self._progress_s + PROGRESS_S:
            return False
        self._progress_s = event.t_s
        return True

    def _send(self, *events: Event) -> None:
        assert self._socket is not None
        self._socket.settimeout(max(self._patience_s, 1.0))
        self._socket.sendall(b"".join(json.dumps(to_dict(event)).encode() + b"\n" for event in events))
        self._n_unanswered += len(events)

    def _answered(self) -> bool:
        """Wait until every event is answered by an empty line; False when the patience is used up before.

        Raises:
            OSError: an answer says why the tracker has failed, or none can come any more.
        """
        assert self._socket is not None
        while self._n_unanswered:
            began = time.monotonic()
            self._socket.settimeout(max(self._patience_s, 0.001))
            try:
                received = self._socket.recv(4096)
            except TimeoutError:
                return False
            self._patience_s -= time.monotonic() - began
            *lines, self._answers = (self._answers + received).split(b"\n")
            for line in lines:
                if line:
                    raise ConnectionError(line.decode("utf-8", "replace"))
                self._n_unanswered -= 1
            if not received:
                raise ConnectionError("its process has ended")
        return True
