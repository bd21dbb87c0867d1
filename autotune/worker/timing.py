"""Where does the time of a step go? Wait, prepare, forward, backward, optimizer; what they leave over is rest."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

import torch

from autotune.contract import StepColumns

LATE_STEPS: Final = 2
"""CUDA events are read so many steps after they were recorded: by then they have passed, and nothing is waited for."""
_COLUMNS: Final = ("prepare_s", "forward_s", "backward_s", "optimizer_s")


class Stamp(Protocol):
    """A moment: of the host at once, of a device when its queue gets there."""

    def past(self) -> bool:
        """True once the moment has come."""

    def wait(self) -> None:
        """Block until it has come."""

    def since(self, earlier: Any) -> float:
        """Seconds since an earlier stamp of the same kind."""


class HostStamp:
    """Now, by perf_counter."""

    __slots__ = ("t",)

    def __init__(self) -> None:
        self.t = time.perf_counter()

    def past(self) -> bool:
        """Always."""
        return True

    def wait(self) -> None:
        """Nothing to wait for."""

    def since(self, earlier: HostStamp) -> float:
        """Seconds."""
        return self.t - earlier.t


class CudaStamp:
    """When the current stream gets here; recording costs the host about a microsecond and never blocks it."""

    __slots__ = ("event",)

    def __init__(self) -> None:
        self.event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.event.record()

    def past(self) -> bool:
        """Asks the driver, without a sync."""
        return bool(self.event.query())

    def wait(self) -> None:
        """Block the host; only after the segment."""
        self.event.synchronize()

    def since(self, earlier: CudaStamp) -> float:
        """Seconds of the device (resolution 0.5 microseconds); both events must have passed."""
        return float(earlier.event.elapsed_time(self.event)) / 1e3


def stamp_of(device: torch.device) -> Callable[[], Stamp]:
    """How moments are stamped on this device."""
    return CudaStamp if device.type == "cuda" else HostStamp


class StepClock:
    """Books the parts of each step into the columns; needs no device sync.

    A part that is begun and not ended by its own end, because a version of the trainer lacks that border, is dropped:
    its time then shows as rest, and nothing else moves.
    Wait and step are the host's time. On rank 0 that is honest, because its progress line reads the loss in each step
    (ULTRALYTICS 1.8); the host of another rank, or of one whose line is not due (knob log_every), runs ahead of its
    device by less than a step, since the loss reads values back too, at both ends of a window.

    Args:
        columns: prepare_s, forward_s, backward_s and optimizer_s are appended to, on CUDA LATE_STEPS steps late.
        stamp: HostStamp or CudaStamp.
        held: the host waits when it is LATE_STEPS ahead of its device. Of several ranks none may run further ahead,
            or it would miss the step that all of them end after (Recorder); no loss need read anything back.
    """

    def __init__(self, columns: StepColumns, stamp: Callable[[], Stamp], *, held: bool = False) -> None:
        self._columns = columns
        self._stamp = stamp
        self._held = held
        self._open: tuple[str, Stamp] | None = None
        self._spans: list[tuple[str, Stamp, Stamp]] = []
        self._late: deque[list[tuple[str, Stamp, Stamp]]] = deque()
        self._batch_end = self._wait_from = time.perf_counter()
        self._wait_s = 0.0

    def start(self) -> None:
        """The training loop begins, or begins to count: the first step's clock starts."""
        self._open, self._spans = None, []
        self._batch_end = self._wait_from = time.perf_counter()

    def wait_from_here(self) -> None:
        """The loop goes to the loader now: the end of an epoch and our own hooks are no fault of it (they are rest)."""
        self._wait_from = time.perf_counter()

    def batch_start(self) -> None:
        """The loader has given a batch."""
        self._wait_s = time.perf_counter() - self._wait_from

    def batch_end(self) -> tuple[float, float]:
        """The step is over.

        Returns:
            Its wait_s and its step_s, which runs from the end of the batch before.
        """
        now = time.perf_counter()
        step_s = now - self._batch_end
        self._batch_end = now
        self._open = None
        self._late.append(self._spans)
        self._spans = []
        while len(self._late) > LATE_STEPS:
            for _, _, end in self._late[0][-1:]:
                if self._held:
                    end.wait()
                elif not end.past():
                    return self._wait_s, step_s
            self._book(self._late.popleft())
        return self._wait_s, step_s

    def finish(self) -> None:
        """Book the last steps; the only place that may wait for the device."""
        while self._late:
            spans = self._late.popleft()
            for _, _, end in spans[-1:]:
                end.wait()
            self._book(spans)

    def begin(self, part: str) -> None:
        """A part of PARTS begins."""
        self._open = (part, self._stamp())

    def end(self, part: str) -> None:
        """It ends; ignored when another one is open."""
        if self._open is not None and self._open[0] == part:
            self._spans.append((*self._open, self._stamp()))
            self._open = None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part that is one call."""
        self.begin(name)
        yield
        self.end(name)

    def follow_backward(self, scaler: Any) -> None:
        """Have the border between forward and backward, and the end of backward, stamped.

        The trainer calls `scaler.scale(loss).backward()` (ULTRALYTICS 1.7), with the scaler on or off. The scaled loss
        is a new tensor in each step, so giving this one its own `backward` changes nothing else; it returns after DDP's
        reduction has been waited for.
        """
        scale = getattr(scaler, "scale", None)
        if scale is None:
            return

        def timed_scale(outputs: Any) -> Any:
            self.end("forward_s")
            scaled: Any = scale(outputs)

            def timed_backward(*args: Any, **kwargs: Any) -> None:
                del scaled.backward  # else tensor and closure would keep each other, and the graph, alive
                with self.part("backward_s"):
                    scaled.backward(*args, **kwargs)

            scaled.backward = timed_backward
            return scaled

        scaler.scale = timed_scale

    def _book(self, spans: list[tuple[str, Stamp, Stamp]]) -> None:
        for column in _COLUMNS:
            seconds = sum(end.since(begin) for part, begin, end in spans if part == column)
            getattr(self._columns, column).append(seconds)
