"""What do the raw columns of the ranks say? Throughput, interval, quantiles, step anatomy (MEASURING 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from autotune.contract import PARTS, Outcome, RankRecord, TrialResult, TrialSpec
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
    record = records[0]  # what rank 0 says of the job holds for all
    return replace(
        _with_window(common, records),
        peak_mem_bytes=tuple(r.peak_mem_bytes for r in records if r.peak_mem_bytes is not None),
        steady=record.steady,
        effective=record.effective,
        resolved=record.resolved,
        job=record.job,
        phases_s=record.phases_s,
        losses=tuple(map(fmean, zip(*(r.losses for r in records), strict=False))),
        epoch_end=record.epoch_end,
        batch_ids=tuple(map("-".join, zip(*(r.batch_ids for r in records), strict=False))),
        certificate=record.certificate,
    )


def _with_window(result: TrialResult, records: Sequence[RankRecord]) -> TrialResult:
    """Throughput, its interval, step quantiles and step anatomy of the measured window, over all ranks.

    Throughput is the images of all ranks over the time of the slowest (MEASURING 2), which is what an epoch takes. The
    ranks meet in every step, so the slowest one's interval is that of all; of each step the slowest rank's time counts.
    """
    rates = [r.steps.throughput(r.measured_from) if r.measured_from else None for r in records]
    known = [rate for rate in rates if rate is not None]
    if not known or len(known) < len(records):
        return result
    slowest = max(known, key=lambda rate: rate.seconds)
    images_per_s = sum(rate.images for rate in known) / slowest.seconds
    if result.probe == "no_sync":  # nobody waits for anybody: all as fast as the slowest is what a step in step takes
        slowest = min(known, key=lambda rate: rate.images_per_s)
        images_per_s = len(known) * slowest.images_per_s
    half = slowest.half_width_frac
    windows = [r.steps.step_s[r.measured_from :] for r in records]
    steps = sorted(max(column) for column in zip(*windows, strict=False))
    waited_s: float = sum(sum(r.steps.wait_s[r.measured_from :]) for r in records)
    return replace(
        result,
        images_per_s=images_per_s,
        ci95_lo=None if half is None else images_per_s * (1 - half),
        ci95_hi=None if half is None else images_per_s * (1 + half),
        step_p50_s=quantile(steps, 0.50),
        step_p90_s=quantile(steps, 0.90),
        step_p99_s=quantile(steps, 0.99),
        wait_frac=waited_s / sum(map(sum, windows)),
        straggler_frac=_straggler_frac(records) if result.probe is None else None,
        parts_s=_parts(records),
        n_steps=slowest.n_steps,
    )


def _parts(records: Sequence[RankRecord]) -> dict[str, float]:
    """Mean seconds per step of each part, over the steps of all ranks; rest is what they leave of the step.

    Empty when a rank has no anatomy.
    """
    windows = []
    for r in records:
        columns = [getattr(r.steps, part)[r.measured_from :] for part in ("step_s", *PARTS)]
        if len({len(column) for column in columns}) != 1:
            return {}
        windows.append(columns)
    n = sum(len(columns[0]) for columns in windows)
    means = [sum(sum(columns[i]) for columns in windows) / n for i in range(1 + len(PARTS))]
    parts = {part.removesuffix("_s"): mean for part, mean in zip(PARTS, means[1:], strict=True)}
    # Device clocks and the host's differ by microseconds: a step without rest may come out below nothing.
    return parts | {"rest": max(0.0, means[0] - sum(means[1:]))}


def _straggler_frac(records: Sequence[RankRecord]) -> float | None:
    """Share of the step for which ranks wait for the slowest one, mean over ranks and steps.

    Every rank's backward pass ends when all gradients are reduced, so the rank that begins it last waits least: what
    another one's takes longer than the shortest of that step is waiting.
    """
    windows = [r.steps.backward_s[r.measured_from :] for r in records]
    steps = [r.steps.step_s[r.measured_from :] for r in records]
    if len(records) < 2 or any(len(b) != len(s) or not b for b, s in zip(windows, steps, strict=True)):
        return None
    together = list(zip(*windows, strict=False))
    waited_s = sum(sum(step) - len(step) * min(step) for step in together) / (len(records) * len(together))
    return float(waited_s / (sum(map(sum, steps)) / sum(map(len, steps))))


def quantile(ordered: list[float], q: float) -> float:
    """Linear interpolation between order statistics (Hyndman and Fan 1996, type 7)."""
    x = (len(ordered) - 1) * q
    i = int(x)
    j = min(i + 1, len(ordered) - 1)
    return ordered[i] + (ordered[j] - ordered[i]) * (x - i)
