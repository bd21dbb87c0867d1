"""Which outcome is this? From the rank's own record first, then the log, then the exit status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autotune.contract import Outcome, RankRecord, TrialSpec
from autotune.run.supervise import Exit

OOM_SIGNS = (
    "out of memory",
    "OutOfMemoryError",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "Cannot allocate memory",
    "MemoryError",
)
"""KNOBS 5.1: the first six on CUDA (the backend ones are memory in disguise), the others on the host."""
SHM_SIGNS = ("out of shared memory", "No space left on device: '/dev/shm", "Bus error")
INVALID_TYPES = ("SyntaxError", "ValueError", "TypeError", "KeyError", "AssertionError", "NotImplementedError")
"""Raised before the first step they are YOLO refusing its arguments."""
UNSTABLE_FRAC = 0.10
"""A 95 % interval wider than this on either side is shown as unstable: it could not rank configurations 15 % apart."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The outcome and its two lines."""

    outcome: Outcome
    error: str | None = None
    hint: str | None = None


def classify(spec: TrialSpec, records: Sequence[RankRecord], end: Exit, log_tail: Sequence[str]) -> Judgement:
    """Judge one finished process tree.

    Args:
        spec: what was asked.
        records: of the ranks that could write one, in order of rank.
        end: how the process ended.
        log_tail: last lines of its log.
    """
    record = next((r for r in records if r.status == "failed"), records[0] if records else None)
    if record is None:
        return _without_record(end, log_tail)
    if record.status == "failed":
        return _failed(record)
    if record.status == "stopped":
        return Judgement(Outcome.PRUNED)
    if spec.trace_steps:
        return Judgement(Outcome.INTERRUPTED, "traced, and ended before anything was measured")
    wrong = mismatches(spec, record)
    if wrong:
        return Judgement(
            Outcome.MISMATCH,
            "; ".join(f"asked {knob}={asked}, got {got}" for knob, asked, got in wrong),
            "what really ran is kept as a configuration of its own",
        )
    rate = record.steps.throughput(record.measured_from) if record.measured_from else None
    if rate is None:
        return Judgement(Outcome.CRASH, "the record holds no measured window", "the trial's log.txt has the details")
    if rate.half_width_frac is None:
        few = f"only {rate.n_steps} steps fitted into the window, too few for an interval"
        return Judgement(Outcome.UNSTABLE, few, "a longer budget gives longer windows")
    if rate.half_width_frac > UNSTABLE_FRAC:
        wide = f"throughput is uncertain by +-{rate.half_width_frac:.0%}"
        return Judgement(Outcome.UNSTABLE, wide, "something else uses this machine, or the loader stalls")
    return Judgement(Outcome.OK)


def mismatches(spec: TrialSpec, record: RankRecord) -> list[tuple[str, object, object]]:
    """Knobs that the search changed and that did not take effect: (knob, asked, got)."""
    return [
        (knob, asked, record.effective.get(knob))
        for knob, asked in spec.changes.items()
        if asked is not None and not same_value(record.effective.get(knob), asked)
    ]


def same_value(a: object, b: object) -> bool:
    """True == 1 in Python, but amp=True and torch_threads=1 are no neighbours: booleans only equal booleans."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def is_oom(text: str) -> bool:
    """True when this error text means that memory, of the device or of the host, ran out."""
    return any(sign in text for sign in OOM_SIGNS)


def _failed(record: RankRecord) -> Judgement:
    error = record.error or {"type": "unknown", "message": "", "traceback": ""}
    message = " ".join(error["message"].split())
    line = f"{error['type']}: {message}"[:300]
    if is_oom(f"{error['type']}: {error['message']}"):
        return Judgement(Outcome.OOM, line, "a smaller batch_per_gpu fits")
    if any(sign in error["message"] for sign in SHM_SIGNS):
        return Judgement(Outcome.OOM, line, "shared memory is full: start the container with a larger --shm-size")
    if error["type"] == "FloatingPointError":
        return Judgement(Outcome.CRASH, line, "the training diverged: check lr0, the labels, or amp=False")
    if not record.steps.end_s and error["type"] in INVALID_TYPES:
        return Judgement(Outcome.INVALID, line, "YOLO refuses these arguments")
    return Judgement(Outcome.CRASH, line, "the trial's log.txt has the traceback")


def _without_record(end: Exit, log_tail: Sequence[str]) -> Judgement:
    if end.reason:
        hint = "the trial's log.txt shows how far it came; a longer --budget gives it more time"
        return Judgement(Outcome.TIMEOUT, end.reason, hint)
    text = "\n".join(log_tail)
    if is_oom(text):
        return Judgement(Outcome.OOM, _last(log_tail), "a smaller batch_per_gpu fits")
    if end.returncode == -9:
        return Judgement(
            Outcome.OOM, "killed by SIGKILL, as the kernel does when memory runs out", "fewer workers, or cache=False"
        )
    return Judgement(
        Outcome.CRASH,
        f"exit status {end.returncode} without a record: {_last(log_tail)}",
        "the trial's log.txt has the details",
    )


def _last(log_tail: Sequence[str]) -> str:
    return next((line.strip() for line in reversed(log_tail) if line.strip()), "empty log")[:300]
