"""What does the claim rest on? receipt.json: enough to measure it again, and to hold a full training against it.

A copied best/ folder alone suffices: the winner stands in winner.json, everything else here.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from autotune.contract import (
    FORMAT,
    JOB_TERMS,
    Comparison,
    Machine,
    Params,
    RunDir,
    SegmentSettings,
    TrialResult,
    Winner,
    from_dict,
    read_json,
    to_dict,
)
from autotune.errors import FormatError, InputError
from autotune.report.chosen import Chosen
from autotune.report.semantics import semantics
from autotune.report.yolo_yaml import job_args
from autotune.run.transport import LOGGING

PER_EPOCH: Final = ("val_s", "save_s", "epoch_end_s")
"""Terms of T(job) that come once an epoch; without them a promise speaks of the steps of an epoch only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fresh:
    """Fresh runs of one configuration in the finalist stage, a list entry a block."""

    numbers: tuple[int, ...] = ()
    images_per_s: tuple[float, ...] = ()
    took_s: float | None = None
    """Mean over the runs, process start to end."""
    job_terms: dict[str, float | None] = field(default_factory=dict)
    """Mean over the runs of each term of T(job)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The user's own job, before the search changed it; paths are the user's."""

    train_args: dict[str, Any]
    env: dict[str, str] = field(default_factory=dict)
    patches: Params = field(default_factory=dict)
    n_ranks: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """How long the winner's full training will take. Seconds; None is what was not measured."""

    epochs: int
    mosaic_epoch_s: float | None = None
    """The steps of one epoch with mosaic."""
    closed_epoch_s: float | None = None
    """The steps of one of the last epochs, in which mosaic is closed."""
    val_s: float | None = None
    """Once an epoch; 0 when the job does not validate."""
    save_s: float | None = None
    epoch_end_s: float | None = None
    job_s: float | None = None
    job_terms: dict[str, float | None] = field(default_factory=dict)
    half_width_frac: float | None = None
    """Of the 95 % interval for one fresh run; None: nothing was repeated."""
    missing: tuple[str, ...] = ()
    """What of the above is None though the job has it."""

    def epoch_s(self, *, closed: bool, whole: bool) -> float | None:
        """Seconds of one epoch.

        Args:
            closed: one without mosaic.
            whole: with validation, checkpoint and epoch end, else its steps alone.
        """
        steps_s = self.closed_epoch_s if closed else self.mosaic_epoch_s
        if not whole or steps_s is None:
            return steps_s
        ends = (self.val_s, self.save_s, self.epoch_end_s)
        return None if None in ends else steps_s + sum(s for s in ends if s is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The parts of receipt.json that recheck and `autotune train` read."""

    format: int = FORMAT
    run: str
    started: str
    claim: str
    objective: str
    confirmed: bool
    simulated: bool
    seed: int
    machine: Machine | None
    baseline_params: Params
    segment: SegmentSettings
    n_images: int | None
    """Training images of the dataset."""
    baseline: Job
    baseline_runs: Fresh
    winner_runs: Fresh
    ratio: Comparison | None
    """None: not from finalist runs."""
    promise: Promise | None


def receipt_of(files: list[str], chosen: Chosen, winner: Winner, run: RunDir) -> dict[str, Any]:
    """What receipt.json holds; the parts that are read again are those of `Receipt`."""
    info, verdict, r = chosen.info, chosen.summary.verdict, chosen.result
    own, best = _fresh(run, chosen, "baseline"), _fresh(run, chosen, "best")
    job = Job(
        train_args=job_args(info),
        env={k: v for k, v in chosen.base.env.items() if k not in LOGGING},
        patches=dict(chosen.base.patches),
        n_ranks=chosen.base.n_ranks,
    )
    return {
        "format": FORMAT,
        "run": info.name,
        "started": info.started,
        "files": files,
        "number": r.number,
        "confirmed": chosen.confirmed,
        "simulated": info.simulated,
        "claim": chosen.claim,
        "objective": info.objective,
        "training": info.training,
        "semantics": semantics(info, chosen.args),
        "fingerprint": winner.fingerprint,
        "machine": to_dict(chosen.machine),
        "ratio": to_dict(_ratio(chosen)),
        "promise": to_dict(_promise(chosen, run)),
        "baseline": to_dict(job),
        "baseline_runs": to_dict(own),
        "winner_runs": to_dict(best),
        "segment": to_dict(chosen.spec.segment),
        "n_images": r.job.get("n_images") or info.n_images,
        "verdict": to_dict(verdict) if chosen.confirmed else None,
        **{
            name: to_dict(getattr(chosen.summary, name)) if chosen.confirmed else None
            for name in ("numerics", "ablation", "memory", "accuracy")
        },
        "search_measurement": {
            k: getattr(r, k) for k in ("images_per_s", "ci95_lo", "ci95_hi", "job_s", "wait_frac", "n_steps")
        },
        "params": to_dict(r.params),
        "baseline_params": to_dict(info.baseline_params),
        "effective": to_dict(r.effective),
        "resolved": to_dict(info.resolved),
        "commands": {
            "search": info.command,
            "launch": "bash launch.sh",
            "yolo": "yolo train cfg=best.yaml",
            "train": "python -m autotune train winner.json",
            "recheck": "python -m autotune recheck .",
        },
        "versions": dict(info.versions),
        **{name: getattr(info, name) for name in ("git", "budget_s", "seed")},
    }


def read_receipt(folder: Path) -> Receipt:
    """The receipt beside a winner.json.

    Raises:
        InputError: there is none, or an older autotune wrote it.
        FormatError: it is damaged, or a newer autotune wrote it.
    """
    path = folder / "receipt.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise InputError(f"no receipt.json in {folder}", "give a run folder, or its best/ folder whole") from e
    except (OSError, ValueError) as e:
        raise FormatError(f"{path} cannot be read: {e}") from e
    if not isinstance(data, dict):
        raise FormatError(f"{path} is not a receipt", "the file is damaged or not one of autotune's")
    if data.get("format", FORMAT) in range(FORMAT + 1) and "baseline" not in data:
        raise InputError(f"{path} is of an older autotune: your own settings are not in it", "autotune export RUN")
    return from_dict(Receipt, {k: v for k, v in data.items() if k in Receipt.__dataclass_fields__})


def _results(run: RunDir, numbers: Sequence[int]) -> list[TrialResult]:
    """Those of these trials that were measured."""
    found = []
    for number in numbers:
        with contextlib.suppress(FormatError):
            result = read_json(run.trial(number).result, TrialResult)
            if result.outcome.measured:
                found.append(result)
    return found


def _fresh(run: RunDir, chosen: Chosen, name: str) -> Fresh:
    finalist = chosen.finalist(name)
    runs = _results(run, finalist.numbers) if finalist else []
    return Fresh(
        numbers=tuple(r.number for r in runs),
        images_per_s=tuple(r.images_per_s for r in runs if r.images_per_s),
        took_s=fmean(r.took_s for r in runs) if runs else None,
        job_terms=_terms(runs),
    )


def _terms(runs: Sequence[TrialResult]) -> dict[str, float | None]:
    known = {t: [s for r in runs if (s := r.job_terms.get(t)) is not None] for t in JOB_TERMS}
    return {t: fmean(values) if values else None for t, values in known.items()}


def _ratio(chosen: Chosen) -> Comparison | None:
    best, verdict = chosen.finalist("best"), chosen.summary.verdict
    if best is None or verdict.sigma_run_frac is None:
        return None
    if best.speedup is None or best.ci95_lo is None or best.ci95_hi is None:
        return None
    return Comparison(
        speedup=best.speedup,
        ci95_lo=best.ci95_lo,
        ci95_hi=best.ci95_hi,
        n_blocks=verdict.n_blocks,
        sigma_run_frac=verdict.sigma_run_frac,
        df=verdict.df,
    )


def _promise(chosen: Chosen, run: RunDir) -> Promise | None:
    """From the winner's fresh runs where there are some, else from the search's own; None without a rate."""
    finalist = chosen.finalist("best")
    runs = (_results(run, finalist.numbers) if finalist else []) or [chosen.result]
    terms, job = _terms(runs), runs[0].job
    n_epochs, mosaic_s = job.get("epochs"), terms["mosaic_epochs_s"]
    if not n_epochs or mosaic_s is None:
        return None
    n_closed = min(n_epochs, job.get("n_closed_epochs") or 0)
    end = _epoch_end(run, chosen)
    steps: dict[str, float | None] = {"mosaic_epoch_s": None, "closed_epoch_s": None}
    if n_closed == n_epochs and (closed_s := terms["closed_epochs_s"]) is not None:
        steps["closed_epoch_s"] = closed_s / n_closed
    elif n_closed < n_epochs:
        steps["mosaic_epoch_s"] = mosaic_s / (n_epochs - n_closed)
        if n_closed and end is not None and end.images_per_s and runs[0].images_per_s:  # else it is only an estimate
            n_images = (runs[0].job_terms["mosaic_epochs_s"] or 0.0) * runs[0].images_per_s / (n_epochs - n_closed)
            steps["closed_epoch_s"] = n_images / end.images_per_s
    ends = {t: s / n_epochs if (s := terms[t]) is not None else None for t in PER_EPOCH}
    if end is not None and end.epoch_end is not None:  # an epoch's own; the terms hold what comes once a job, too
        once = end.epoch_end
        ends = {"val_s": once.val_s, "save_s": once.save_s, "epoch_end_s": once.rest_s}
    ends |= {f"{key}_s": 0.0 for key in ("val", "save") if not job_args(chosen.info).get(key, True)}
    exists = {"mosaic_epoch_s": n_closed < n_epochs, "closed_epoch_s": n_closed > 0}
    parts = steps | ends
    sigma, df = chosen.summary.verdict.sigma_run_frac, chosen.summary.verdict.df
    return Promise(
        epochs=n_epochs,
        **parts,
        job_s=fmean(known) if (known := [r.job_s for r in runs if r.job_s is not None]) else None,
        job_terms=terms,
        half_width_frac=_half_width(sigma, df, len(runs)) if finalist and sigma is not None else None,
        missing=tuple(name for name, seconds in parts.items() if seconds is None and exists.get(name, True)),
    )


def _half_width(sigma_frac: float, df: int, n_runs: int) -> float:
    """Half of the 95 % prediction interval for one fresh run, as a share, from the mean of n (Student t).

    The full training is one run more, with noise of its own: sqrt(1 + 1/n) in place of sqrt(1/n) (Hahn and Meeker,
    Statistical Intervals, 1991, ch. 4).
    """
    from scipy.special import stdtrit

    return float(stdtrit(df, 0.975)) * sigma_frac * sqrt(1 + 1 / n_runs)


def _epoch_end(run: RunDir, chosen: Chosen) -> TrialResult | None:
    """The probe that measured an epoch end of this configuration; its rate is the one without mosaic."""
    for _, directory in run.numbered():
        with contextlib.suppress(FormatError):
            result = read_json(directory.result, TrialResult)
            if result.probe == "epoch_end" and result.epoch_end and _same(result.params, chosen.result.params):
                return result
    return None


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
