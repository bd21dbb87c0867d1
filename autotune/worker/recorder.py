"""What does a rank leave behind? Phases, steps streamed line by line, and one record written whole."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from typing import Any, Literal, TextIO

from autotune.contract import EpochEnd, RankRecord, Sizes, TrialDir, TrialSpec, write_json
from autotune.worker.segment import Segment, State

STOP_MARGIN = 3
"""Steps at least between rank 0's decision to stop and the step that all ranks stop at."""


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
        self.sizes: Sizes | None = None
        self.losses: list[float] = []
        self.batch_ids: list[str] = []
        self.epoch_end: EpochEnd | None = None
        self.certificate: dict[str, Any] = {}
        self.stopped = False
        self.training = False
        """True once the training loop runs: what fails before is most likely an argument."""
        self.over = False
        """True once all ranks of several leave after this step: none of them waits in a collective."""
        self._mark = self.began
        self._stream: TextIO | None = None
        self._stop_at: int | None = None
        self._window = 0

    def now(self) -> float:
        """Seconds since the process began."""
        return self.clock() - self.began

    def begin(self, phase: str) -> None:
        """Tell the controller that a phase of Deadlines begins (import, build, first_step)."""
        self._write(f"# {phase}")

    def phase(self, name: str) -> None:
        """End the phase that runs now under this name; the next one begins."""
        t = self.clock()
        self.phases_s[name] = self.phases_s.get(name, 0.0) + t - self._mark
        self._mark = t

    def add_phase(self, name: str, seconds: float) -> None:
        """Book seconds of the running phase under another name (a cache built while the trainer is built)."""
        self.phases_s[name] = self.phases_s.get(name, 0.0) + seconds
        self._mark += seconds

    def step(self, *, wait_s: float, step_s: float, images: int, ready: int = 0, compiles: int = 0) -> bool:
        """Book one finished batch; True when the segment is over (also when the controller asked to stop)."""
        if not self.segment.steps.end_s and "first_step" not in self.phases_s:
            self.phase("first_step")
        before = self.segment.state
        end_s = self.now()
        state = self.segment.step(
            end_s=end_s, wait_s=wait_s, step_s=step_s, images=images, ready=ready, compiles=compiles
        )
        if before is not State.MEASURING and state is State.MEASURING:
            self.phase("warmup")  # after a window that a recompile voided, that window's time counts here too
        measuring = int(before in (State.MEASURING, State.DONE) and state is not State.WARMUP)
        self._write(f"{end_s:.6f} {wait_s:.6f} {step_s:.6f} {images} {ready} {measuring}")
        self.stopped = self.stopped or self.directory.stop.exists()
        over = state is State.DONE or self.stopped
        if not (over if self.spec.n_ranks == 1 else self._all_over(over)):
            return False
        self.phase("measure" if self.segment.measured_from is not None else "warmup")
        return True

    def _all_over(self, over: bool) -> bool:
        """All ranks leave after the same step, or the last one would wait for the others in a collective for ever.

        Rank 0 decides. It names a step a little ahead in a file before that step's gradients are reduced, so no rank
        can have finished it unread: ranks are never a whole step apart, and a host runs ahead of its GPU by less than
        STOP_MARGIN steps (StepClock holds it back).
        """
        n = len(self.segment.steps.end_s)
        path = self.directory.stop_at
        if self._stop_at is None and self.rank == 0 and over:
            # Ahead by whole optimizer cycles, so that the window stays made of them.
            cycle, ahead = self.segment.accumulate, STOP_MARGIN
            if self.spec.probe == "no_sync":  # nothing holds the ranks together, but no rank leaves an epoch alone
                ahead += max(0, *(self._steps_of(r) - n for r in range(1, self.spec.n_ranks)))
            self._stop_at = n + -(-ahead // cycle) * cycle
            tmp = path.with_suffix(".tmp")
            tmp.write_text(f"{self._stop_at} {self.segment.measured_from or 0}", encoding="ascii")
            tmp.replace(path)
        elif self._stop_at is None and self.rank > 0 and path.exists():
            self._stop_at, self._window = map(int, path.read_text(encoding="ascii").split())
        if self._stop_at is not None and self.rank > 0:
            # Again after each step: this rank's own segment may begin its window in one of the last ones.
            self.segment.measured_from = self._window or None
        self.over = self._stop_at is not None and n >= self._stop_at
        return self.over

    def _steps_of(self, rank: int) -> int:
        """How many steps another rank has finished, as its stream says."""
        try:
            lines = self.directory.stream(rank).read_text(encoding="ascii").splitlines()
        except OSError:
            return 0
        return sum(not line.startswith("#") for line in lines)

    def _write(self, line: str) -> None:
        if self._stream is None:
            self._stream = self.directory.stream(self.rank).open("w", encoding="ascii", buffering=1)
        self._stream.write(f"{line}\n")

    def write(self, error: BaseException | None = None) -> None:
        """Write the record, whole or not at all; the last call."""
        if self._stream is not None:
            self._stream.close()
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
                began_s=self.began if self.clock is time.perf_counter else None,  # on Linux the same as monotonic()
                ended_s=time.monotonic(),
                sizes=self.sizes,
                losses=self.losses,
                batch_ids=self.batch_ids,
                epoch_end=self.epoch_end,
                certificate=self.certificate,
            ),
        )


def _describe(error: BaseException) -> dict[str, str]:
    return {
        "type": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
    }
