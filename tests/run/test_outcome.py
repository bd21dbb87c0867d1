"""Records, logs and exit statuses become outcomes."""

from __future__ import annotations

import pytest

from autotune.contract import Outcome, RankRecord, StepColumns
from autotune.run.outcome import classify, mismatches, same_value
from autotune.run.supervise import Exit
from tests.run.trials import spec

ENDED = Exit(returncode=0, took_s=10.0, reason=None)


def columns(n: int = 31, noise: float = 0.0) -> StepColumns:
    steps = [0.1 + (noise if i % 2 else 0.0) for i in range(n)]
    return StepColumns(
        end_s=[sum(steps[: i + 1]) for i in range(n)], wait_s=[0.0] * n, step_s=steps, images=[8] * n, ready=[0] * n
    )


def record(**changes: object) -> RankRecord:
    base = {"rank": 0, "status": "done", "steps": columns(), "measured_from": 1, "steady": True, "effective": {}}
    return RankRecord(**{**base, **changes})  # type: ignore[arg-type]


def failed(kind: str, message: str, steps: StepColumns | None = None) -> RankRecord:
    error = {"type": kind, "message": message, "traceback": ""}
    return record(status="failed", error=error, steps=steps or StepColumns(), measured_from=None)


@pytest.mark.parametrize(
    ("kind", "message", "outcome"),
    [
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 20.00 MiB.", Outcome.OOM),
        ("RuntimeError", "CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate", Outcome.OOM),
        ("RuntimeError", "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory", Outcome.OOM),
        ("MemoryError", "", Outcome.OOM),
        ("RuntimeError", "DataLoader worker (pid 7) is killed by signal: Bus error. out of shared memory", Outcome.OOM),
        ("NotImplementedError", "Optimizer 'X' not found", Outcome.INVALID),
        ("SyntaxError", "'foo' is not a valid YOLO argument", Outcome.INVALID),
        ("FloatingPointError", "the loss is NaN or infinite", Outcome.CRASH),
        ("RuntimeError", "something else", Outcome.CRASH),
    ],
)
def test_failed_records(kind: str, message: str, outcome: Outcome) -> None:
    judgement = classify(spec("d"), [failed(kind, message)], ENDED, [])
    assert judgement.outcome is outcome
    assert judgement.error
    assert judgement.hint


def test_a_value_error_after_steps_is_a_crash_not_the_users_arguments() -> None:
    assert classify(spec("d"), [failed("ValueError", "x", columns())], ENDED, []).outcome is Outcome.CRASH


def test_without_a_record() -> None:
    killed = Exit(returncode=-9, took_s=1.0, reason=None)
    assert classify(spec("d"), [], killed, []).outcome is Outcome.OOM
    late = Exit(returncode=-9, took_s=1.0, reason="no step for 120 s after 7 steps")
    assert classify(spec("d"), [], late, []).outcome is Outcome.TIMEOUT
    crash = Exit(returncode=1, took_s=1.0, reason=None)
    judgement = classify(spec("d"), [], crash, ["a line", "ImportError: no module", ""])
    assert judgement.outcome is Outcome.CRASH
    assert judgement.error == "exit status 1 without a record: ImportError: no module"


def test_a_good_record_wins_over_a_bad_exit_status() -> None:
    # Torch aborts now and then in its destructors after correct results.
    aborted = Exit(returncode=-6, took_s=1.0, reason=None)
    log = ["terminate called without an active exception", "error: nothing of importance"]
    assert classify(spec("d"), [record()], aborted, log).outcome is Outcome.OK


def test_wide_interval_is_unstable() -> None:
    wide = record(steps=StepColumns(**{**_dict(columns(21)), "end_s": _bursts(21)}))
    judgement = classify(spec("d"), [wide], ENDED, [])
    assert judgement.outcome is Outcome.UNSTABLE
    assert "uncertain" in (judgement.error or "")
    few = record(steps=columns(5))
    assert classify(spec("d"), [few], ENDED, []).outcome is Outcome.UNSTABLE


def _dict(c: StepColumns) -> dict[str, list[float]]:
    return {"end_s": c.end_s, "wait_s": c.wait_s, "step_s": c.step_s, "images": c.images, "ready": c.ready}  # type: ignore[dict-item]


def _bursts(n: int) -> list[float]:
    t, out = 0.0, []
    for i in range(n):
        t += 1.0 if i % 7 == 3 else 0.1
        out.append(t)
    return out


def test_only_what_the_search_changed_can_mismatch() -> None:
    asked = spec("d", changes={"workers": 4, "prefetch_factor": None})
    got = record(effective={"workers": 0, "amp": False, "prefetch_factor": 4})
    assert mismatches(asked, got) == [("workers", 4, 0)]
    assert classify(asked, [got], ENDED, []).outcome is Outcome.MISMATCH


def test_true_is_not_one() -> None:
    assert not same_value(True, 1)
    assert same_value(2, 2)
    assert not same_value(None, False)
