"""What is a running trial doing, and has it run out of time? Read from the ranks' heartbeats while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from autotune.contract import StepColumns, TrialDir, TrialSpec

WATCH_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A running trial: `steps` holds the step before the window and then the measured ones."""

    phase: str
    steps: StepColumns = field(default_factory=StepColumns)
    n_steps: int = 0
    """Steps so far, warm-up included."""
    elapsed_s: float = 0.0


Watch = Callable[[Live], str | None]


class Watcher:
    """Called by the supervisor while the tree runs: deadlines, the live view, racing."""

    def __init__(self, spec: TrialSpec, directory: TrialDir, watch: Watch | None) -> None:
        self.spec = spec
        self.directory = directory
        self.watch = watch
        self.stop_reason: str | None = None
        self._tail = _StepTail(directory.stream(0))
        self._last_step_s: float | None = None
        self._next_watch_s = 0.0

    def __call__(self, elapsed_s: float) -> str | None:
        """Seconds since the start -> why the tree must die, or None."""
        if elapsed_s > self.spec.deadlines.total_s:
            return f"still running after {elapsed_s:.0f} s, its deadline"
        if elapsed_s < self._next_watch_s:
            return None
        self._next_watch_s = elapsed_s + WATCH_S
        before = self._tail.n_steps
        self._tail.read()
        if self._tail.n_steps > before:
            self._last_step_s = elapsed_s
        elif self._last_step_s is not None and elapsed_s - self._last_step_s > self.spec.deadlines.stall_s:
            return f"no step for {elapsed_s - self._last_step_s:.0f} s after {self._tail.n_steps} steps"
        if self.watch and not self.stop_reason:
            live = Live(
                phase=self._tail.phase, steps=self._tail.measured, n_steps=self._tail.n_steps, elapsed_s=elapsed_s
            )
            self.stop_reason = self.watch(live)
            if self.stop_reason:
                self.directory.stop.write_text(self.stop_reason, encoding="utf-8")
        return None


class _StepTail:
    """Follows the stream of steps while the worker writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.measured = StepColumns()
        self.n_steps = 0
        self.phase = "starting"
        self._offset = 0

    def read(self) -> None:
        try:
            with self.path.open("rb") as f:
                f.seek(self._offset)
                data = f.read()
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.decode("ascii").splitlines():
            if line.startswith("# "):
                self.phase = line[2:]
                continue
            end, wait, step, images, ready, measuring = line.split()
            self.n_steps += 1
            self.phase = "measuring" if measuring == "1" else "warm-up"
            if measuring == "0":
                self.measured = StepColumns()  # keep only the last step before the window: it starts the clock
            for column, value in zip(
                (self.measured.end_s, self.measured.wait_s, self.measured.step_s),
                (float(end), float(wait), float(step)),
                strict=True,
            ):
                column.append(value)
            self.measured.images.append(int(images))
            self.measured.ready.append(int(ready))
