"""What does a rank leave behind? Phases, steps streamed line by line, and one record written whole."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from typing import Any, Literal, TextIO

from autotune.contract import RankRecord, TrialDir, TrialSpec, write_json
from autotune.worker.segment import Segment, State


class Recorder:
    """Owns the rank's files and clock.

    Args:
        spec: the trial.
        directory: its folder.
        rank: this process's rank.
        began: perf_counter() at process start.
        clock: perf_counter, or a fake for tests and simulation.
    """

    def __init__(
        self,
        spec: TrialSpec,
        directory: TrialDir,
        *,
        rank: int = 0,
        began: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.spec = spec
        self.directory = directory
        self.rank = rank
        self.clock = clock
        self.began = clock() if began is None else began
        self.segment = Segment(spec.segment)
        self.phases_s: dict[str, float] = {}
        self.effective: dict[str, Any] = {}
        self.resolved: dict[str, Any] = {}
        self.job: dict[str, Any] = {}
        self.peak_mem_bytes: int | None = None
        self.stopped = False
        self.training = False
        """True once the training loop runs: what fails before is most likely an argument."""
        self._mark = self.began
        self._stream: TextIO | None = None

    def now(self) -> float:
        """Seconds since the process began."""
        return self.clock() - self.began

    def phase(self, name: str) -> None:
        """End the phase that runs now under this name; the next one begins."""
        t = self.clock()
        self.phases_s[name] = self.phases_s.get(name, 0.0) + t - self._mark
        self._mark = t

    def add_phase(self, name: str, seconds: float) -> None:
        """Book seconds of the running phase under another name (a cache built while the trainer is built)."""
        self.phases_s[name] = self.phases_s.get(name, 0.0) + seconds
        self._mark += seconds

    def step(self, *, wait_s: float, step_s: float, images: int, ready: int = 0) -> bool:
        """Book one finished batch; True when the segment is over (also when the controller asked to stop)."""
        if not self.segment.steps.end_s:
            self.phase("first_step")
        before = self.segment.state
        end_s = self.now()
        state = self.segment.step(end_s=end_s, wait_s=wait_s, step_s=step_s, images=images, ready=ready)
        if before is State.WARMUP and state is not State.WARMUP:
            self.phase("warmup")
        if self._stream is None:
            self._stream = self.directory.stream(self.rank).open("w", encoding="ascii", buffering=1)
        measuring = int(before is not State.WARMUP)
        self._stream.write(f"{end_s:.6f} {wait_s:.6f} {step_s:.6f} {images} {ready} {measuring}\n")
        if state is State.DONE:
            self.phase("measure")
            return True
        if self.directory.stop.exists():
            self.stopped = True
            self.phase("warmup" if state is State.WARMUP else "measure")
            return True
        return False

    def write(self, error: BaseException | None = None) -> None:
        """Write the record, whole or not at all."""
        status: Literal["done", "stopped", "failed"] = "failed" if error else "stopped" if self.stopped else "done"
        write_json(
            self.directory.rank(self.rank),
            RankRecord(
                rank=self.rank,
                status=status,
                steps=self.segment.steps,
                measured_from=self.segment.measured_from,
                steady=self.segment.steady,
                peak_mem_bytes=self.peak_mem_bytes,
                effective=self.effective,
                resolved=self.resolved,
                job=self.job,
                phases_s=self.phases_s,
                error=_describe(error) if error else None,
            ),
        )


def _describe(error: BaseException) -> dict[str, str]:
    return {
        "type": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
    }
