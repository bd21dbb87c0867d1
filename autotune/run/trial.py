"""What does one configuration give? run_trial(spec, directory) -> TrialResult."""

from __future__ import annotations

import contextlib
import re
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from autotune.contract import (
    Outcome,
    RankRecord,
    StepColumns,
    TrialDir,
    TrialResult,
    TrialSpec,
    read_json,
    write_json,
)
from autotune.errors import FormatError
from autotune.run.launch import TAG, argv, environment
from autotune.run.outcome import Judgement, classify
from autotune.run.supervise import run_tree

WATCH_S = 0.5
LOG_TAIL_LINES = 20
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A running trial: `steps` holds the step before the window and then the measured ones."""

    phase: str
    steps: StepColumns = field(default_factory=StepColumns)
    n_steps: int = 0
    """Steps so far, warm-up included."""
    elapsed_s: float = 0.0


Watch = Callable[[Live], str | None]


def run_trial(
    spec: TrialSpec,
    directory: TrialDir,
    *,
    started_s: float,
    watch: Watch | None = None,
    to_screen: bool = False,
) -> TrialResult:
    """Start fresh processes for this spec, wait for their end, judge them, and write result.json.

    Args:
        spec: the trial; written to spec.json.
        directory: its folder; made when missing.
        started_s: seconds since the run began, kept in the result.
        watch: called about twice a second; the string it returns ends the segment at the next step (outcome pruned).
        to_screen: leave the output on our stdout instead of log.txt.

    Raises:
        KeyboardInterrupt: after the tree is dead; no result is written.
    """
    directory.path.mkdir(parents=True, exist_ok=True)
    write_json(directory.spec, spec)
    for stale in (directory.stop, directory.rank(0), directory.stream(0)):
        stale.unlink(missing_ok=True)
    tag = uuid.uuid4().hex
    watcher = _Watcher(spec, directory, watch)
    try:
        end = run_tree(
            argv(spec, directory),
            env=environment(spec, directory, tag) | {TAG: tag},
            cwd=directory.path,
            log=None if to_screen else directory.log,
            poll=watcher,
        )
    finally:
        shutil.rmtree(directory.path / "tmp", ignore_errors=True)
        shutil.rmtree(directory.path / "yolo", ignore_errors=True)
    record: RankRecord | None = None
    with contextlib.suppress(FormatError):
        record = read_json(directory.rank(0), RankRecord)
    tail = log_tail(directory.log)
    judgement = classify(spec, record, end, tail)
    if judgement.outcome is Outcome.PRUNED:
        judgement = Judgement(Outcome.PRUNED, watcher.stop_reason or "stopped by the controller")
    result = build_result(spec, record, judgement, started_s=started_s, took_s=end.took_s, tail=tail)
    write_json(directory.result, result)
    return result


def build_result(
    spec: TrialSpec,
    record: RankRecord | None,
    judgement: Judgement,
    *,
    started_s: float,
    took_s: float,
    tail: tuple[str, ...] = (),
) -> TrialResult:
    """Statistics from the raw columns; everything that was not measured stays None."""
    # What YOLO says of wrong arguments is one line already; a traceback would bury it.
    crashed = judgement.outcome in (Outcome.CRASH, Outcome.TIMEOUT)
    common = TrialResult(
        number=spec.number,
        role=spec.role,
        outcome=judgement.outcome,
        params=spec.params,
        started_s=started_s,
        took_s=took_s,
        error=judgement.error,
        hint=judgement.hint,
        log_tail=tail if crashed else (),
    )
    if record is None:
        return common
    window = _window(record)
    return _replace(
        common,
        **window,
        peak_mem_bytes=() if record.peak_mem_bytes is None else (record.peak_mem_bytes,),
        steady=record.steady,
        effective=record.effective,
        resolved=record.resolved,
        job=record.job,
        phases_s=record.phases_s,
    )


def _replace(result: TrialResult, **changes: object) -> TrialResult:
    from dataclasses import replace

    return replace(result, **changes)  # type: ignore[arg-type]


def _window(record: RankRecord) -> dict[str, object]:
    """Throughput, its interval and step quantiles of the measured window."""
    start = record.measured_from
    rate = record.steps.throughput(start) if start else None
    if start is None or rate is None:
        return {}
    steps = sorted(record.steps.step_s[start:])
    waits = record.steps.wait_s[start:]
    half = rate.half_width_frac
    # Total images / total time over all ranks; one rank here.
    return {
        "images_per_s": rate.images_per_s,
        "ci95_lo": None if half is None else rate.images_per_s * (1 - half),
        "ci95_hi": None if half is None else rate.images_per_s * (1 + half),
        "step_p50_s": quantile(steps, 0.50),
        "step_p90_s": quantile(steps, 0.90),
        "step_p99_s": quantile(steps, 0.99),
        "wait_frac": sum(waits) / sum(steps),
        "n_steps": rate.n_steps,
    }


def quantile(ordered: list[float], q: float) -> float:
    """Linear interpolation between order statistics (Hyndman and Fan 1996, type 7)."""
    x = (len(ordered) - 1) * q
    i = int(x)
    j = min(i + 1, len(ordered) - 1)
    return ordered[i] + (ordered[j] - ordered[i]) * (x - i)


class _Watcher:
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
        if elapsed_s > self.spec.deadline_s:
            return f"still running after {elapsed_s:.0f} s, its deadline"
        if elapsed_s < self._next_watch_s:
            return None
        self._next_watch_s = elapsed_s + WATCH_S
        before = self._tail.n_steps
        self._tail.read()
        if self._tail.n_steps > before:
            self._last_step_s = elapsed_s
        elif self._last_step_s is not None and elapsed_s - self._last_step_s > self.spec.stall_s:
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


def log_tail(path: Path, n: int = LOG_TAIL_LINES) -> tuple[str, ...]:
    """Last lines of a log as a terminal would show them: of a progress bar only its last state, and no colours."""
    try:
        with path.open("rb") as f:
            f.seek(0, 2)
            f.seek(max(0, f.tell() - 65536))
            text = f.read().decode("utf-8", "replace")
    except OSError:
        return ()
    shown = [ANSI.sub("", line).rstrip("\r").rsplit("\r", 1)[-1].rstrip() for line in text.split("\n")]
    return tuple(line for line in shown if line.strip())[-n:]
