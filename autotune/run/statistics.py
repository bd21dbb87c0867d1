"""What do the raw columns of the ranks say? Throughput, interval, quantiles, step anatomy (MEASURING 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autotune.contract import Outcome, RankRecord, TrialResult, TrialSpec
from autotune.run.outcome import Judgement


def build_result(
    spec: TrialSpec,
    records: Sequence[RankRecord],
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
        probe=spec.probe,
        outcome=judgement.outcome,
        params=spec.params,
        started_s=started_s,
        took_s=took_s,
        error=judgement.error,
        hint=judgement.hint,
        log_tail=tail if crashed else (),
    )
    if not records:
        return common
    record = records[0]  # rank 0 first; the others differ from it in speed only
    return replace(
        _with_window(common, record),
        peak_mem_bytes=tuple(r.peak_mem_bytes for r in records if r.peak_mem_bytes is not None),
        steady=record.steady,
        effective=record.effective,
        resolved=record.resolved,
        job=record.job,
        phases_s=record.phases_s,
    )


def _with_window(result: TrialResult, record: RankRecord) -> TrialResult:
    """Throughput, its interval and step quantiles of the measured window."""
    start = record.measured_from
    rate = record.steps.throughput(start) if start else None
    if start is None or rate is None:
        return result
    steps = sorted(record.steps.step_s[start:])
    waits = record.steps.wait_s[start:]
    half = rate.half_width_frac
    # Total images / total time over all ranks; one rank here.
    return replace(
        result,
        images_per_s=rate.images_per_s,
        ci95_lo=None if half is None else rate.images_per_s * (1 - half),
        ci95_hi=None if half is None else rate.images_per_s * (1 + half),
        step_p50_s=quantile(steps, 0.50),
        step_p90_s=quantile(steps, 0.90),
        step_p99_s=quantile(steps, 0.99),
        wait_frac=sum(waits) / sum(steps),
        n_steps=rate.n_steps,
    )


def quantile(ordered: list[float], q: float) -> float:
    """Linear interpolation between order statistics (Hyndman and Fan 1996, type 7)."""
    x = (len(ordered) - 1) * q
    i = int(x)
    j = min(i + 1, len(ordered) - 1)
    return ordered[i] + (ordered[j] - ordered[i]) * (x - i)
