"""How long would the user's whole job take with this configuration?

The model of the job is MEASURING 4:

    T(job) = start + compile + cache build + mosaic epochs + closed epochs + epochs * (val + save + epoch end)
           + warm-up + final evaluation

A trial measures start, compile, cache and the steps with mosaic. Ends of epochs and the steps without mosaic come from
a probe `epoch_end`: of this very configuration, or else estimated from that of the baseline. Until the baseline's has
run they are None, and in no sum.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from autotune.contract import JOB_TERMS, Outcome, Params, TrialResult
from autotune.search.proposals import key_of

WARMUP_EPOCHS: Final = 3.0
"""Ultralytics' default."""
SAME_FRAC: Final = 0.02
"""Rates of two fresh processes that differ by less are alike (run-to-run noise, SEARCH 3.6)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """What is known about the ends of epochs with one configuration."""

    baseline: TrialResult
    """Its trial."""
    of_baseline: TrialResult
    """Its probe `epoch_end`."""
    own: TrialResult | None
    """The probe of this very configuration; None: all is estimated from the baseline's."""
    own_trial: TrialResult | None = None
    """Its first measured trial, which the own probe's rate is compared with."""
    warmup_epochs: float = WARMUP_EPOCHS
    """Of the user's job; a trial has none."""

    @property
    def probe(self) -> TrialResult:
        """The one to rely on."""
        return self.own or self.of_baseline

    @property
    def start_extra_s(self) -> float:
        """What the user's start takes longer than a trial's: the validation set, and plots of the labels.

        Taken from the baseline for all: it hardly depends on the configuration, and the difference of two starts is
        uncertain enough.
        """
        whole, trial = _start_s(self.of_baseline.phases_s), _start_s(self.baseline.phases_s)
        return max(0.0, whole - trial) if whole is not None and trial is not None else 0.0


class EpochEnds:
    """The probes `epoch_end` of a search, by configuration.

    Args:
        train_args: the user's job.
    """

    def __init__(self, train_args: Mapping[str, Any]) -> None:
        self.warmup_epochs = float(train_args.get("warmup_epochs", WARMUP_EPOCHS))
        self._probes: dict[str, TrialResult] = {}
        self._trials: dict[str, TrialResult] = {}
        """The first of each configuration, so that what is compared with it does not change."""

    def learn(self, result: TrialResult) -> None:
        """Take in a trial or such a probe, if it has ended well."""
        if not result.outcome.measured:
            return
        if result.epoch_end is not None:
            self._probes[key_of(result.params)] = result
        elif result.role != "probe":
            self._trials.setdefault(key_of(result.params), result)

    def has(self, params: Params) -> bool:
        """Did the probe of this configuration end well?"""
        return key_of(params) in self._probes

    def of(self, params: Params, baseline: TrialResult | None) -> Ends | None:
        """What is known for a configuration; None until the baseline's probe has run.

        Until then nothing is known for any, so that all trials are compared with the same terms.
        """
        first = self._probes.get(key_of(baseline.params)) if baseline else None
        if first is None:
            return None
        assert baseline is not None
        own = self._probes.get(key_of(params))
        trial = baseline if own is first else self._trials.get(key_of(params))
        return Ends(baseline=baseline, of_baseline=first, own=own, own_trial=trial, warmup_epochs=self.warmup_epochs)


def job_terms(
    result: TrialResult,
    baseline: TrialResult | None = None,
    cold_s: Mapping[str, float] | None = None,
    ends: Ends | None = None,
) -> tuple[dict[str, float | None], tuple[str, ...]]:
    """Seconds of each term of T(job) for one trial.

    Args:
        result: a trial; its phases are taken as disjoint (`build` does not contain `cache`).
        baseline: gives the facts of the job (images, epochs) where the trial did not live to report them.
        cold_s: term -> the dearest that was seen for this configuration. A compile or a disk cache that an earlier
            trial left warm costs this trial nothing, but it costs the user's job its full price once.
        ends: of its epochs.

    Returns:
        One entry for every name in contract.JOB_TERMS, None where it is not known; and the names of the terms that
        are estimated from the baseline's probe.
    """
    phases, job = result.phases_s, dict(baseline.job if baseline else {}) | dict(result.job)
    terms: dict[str, float | None] = dict.fromkeys(JOB_TERMS)
    first_extra_s = 0.0
    if "first_step" in phases and result.step_p50_s is not None:
        first_extra_s = max(0.0, phases["first_step"] - result.step_p50_s)
    compiled = bool(result.effective.get("compile"))
    # The user's job starts cold: of a warm trial only the first step is the job's.
    start_s = _start_s(baseline.phases_s if result.warm and baseline else phases)
    if start_s is not None:
        terms["start_s"] = start_s + (0.0 if compiled else first_extra_s)
    if phases:
        terms["compile_s"] = first_extra_s if compiled else 0.0
        terms["cache_build_s"] = phases.get("cache", 0.0)
    for term, floor in (cold_s or {}).items():
        known = terms[term]
        terms[term] = floor if known is None else max(known, floor)
    if not (result.images_per_s and job.get("n_images") and job.get("epochs")):
        return terms, ()
    # With compile the loader drops the last incomplete batch: an epoch trains that many images less.
    n_images = min(job["n_images"], job.get("n_batches", math.inf) * job.get("batch", math.inf))
    n_closed = min(job["epochs"], job.get("n_closed_epochs") or 0)
    terms["mosaic_epochs_s"] = (job["epochs"] - n_closed) * n_images / result.images_per_s
    terms["closed_epochs_s"] = n_closed * n_images / result.images_per_s
    if ends is None:
        return terms, ()
    estimated = _add_ends(terms, result, ends, int(job["epochs"]), n_closed * n_images)
    steps = extra_optimizer_steps(
        int(job.get("n_batches") or 0), int(job["epochs"]), ends.warmup_epochs, int(job.get("accumulate") or 1)
    )
    own_s, other_s = _optimizer_step_s(result), _optimizer_step_s(ends.probe)
    step_s = other_s if own_s is None else own_s
    terms["warmup_s"] = steps * step_s if step_s is not None else 0.0 if steps == 0 else None
    estimated |= {"warmup_s"} if steps and own_s is None else set()
    return terms, tuple(t for t in JOB_TERMS if t in estimated and terms[t] is not None)


def _add_ends(
    terms: dict[str, float | None], result: TrialResult, ends: Ends, epochs: int, n_closed_images: float
) -> set[str]:
    """Fill in what the probe tells; returns what of it is an estimate."""
    end = ends.probe.epoch_end
    assert end is not None
    terms["val_s"] = None if end.val_s is None else end.val_s * (epochs if end.val_every_epoch else 1)
    terms["save_s"] = None if end.save_s is None else end.save_s * (epochs if end.save_every_epoch else 1)
    terms["epoch_end_s"] = None if end.rest_s is None else end.rest_s * epochs + end.first_extra_s
    terms["final_s"] = end.final_s
    estimated = set() if ends.own else {"val_s", "save_s", "epoch_end_s", "final_s"}
    if n_closed_images and end.reset_s is not None and result.images_per_s:
        own = closed_ratio(ends.own, ends.own_trial) if ends.own and ends.own_trial else None
        ratio = _estimated_ratio(result, ends) if own is None else own
        terms["closed_epochs_s"] = n_closed_images / (result.images_per_s * ratio) + end.reset_s
        estimated |= {"closed_epochs_s"} if own is None else set()
    if terms["start_s"] is not None and ends.start_extra_s:
        terms["start_s"] += ends.start_extra_s
        estimated |= {"start_s"} if ends.own is not ends.of_baseline else set()
    return estimated


def closed_ratio(probe: TrialResult, trial: TrialResult) -> float | None:
    """How much faster the steps are without mosaic, with one configuration: the rate of its probe over its trial's.

    A ratio, so that each of several runs keeps its own rate: one probe's noise must not stand in all of them. 1.0 where
    the two differ by less than their intervals and SAME_FRAC; None where it was not measured, or the probe is unstable.
    """
    if probe.outcome is not Outcome.OK or not probe.images_per_s or not trial.images_per_s:
        return None
    if probe.epoch_end is None or probe.epoch_end.reset_s is None:
        return None
    ratio = probe.images_per_s / trial.images_per_s
    half = sum(1 - r.ci95_lo / r.images_per_s for r in (probe, trial) if r.ci95_lo and r.images_per_s)
    return 1.0 if abs(ratio - 1) <= max(SAME_FRAC, half) else ratio


def _estimated_ratio(result: TrialResult, ends: Ends) -> float:
    """As much faster without mosaic as the baseline; the same where that is not known.

    It is the loader that has less to do without mosaic, so no step gets shorter than it is without its wait for data.
    """
    ratio = closed_ratio(ends.of_baseline, ends.baseline)
    bound = math.inf if result.wait_frac is None else 1.0 / max(1e-3, 1.0 - result.wait_frac)
    return min(ratio, bound) if ratio is not None else 1.0


def _optimizer_step_s(result: TrialResult) -> float | None:
    """Seconds of one optimizer step: its part is a mean over all steps, of which one in `accumulate` has it."""
    part_s = result.parts_s.get("optimizer")
    return None if part_s is None else part_s * int(result.job.get("accumulate") or 1)


@lru_cache(maxsize=256)
def extra_optimizer_steps(n_batches: int, epochs: int, warmup_epochs: float, accumulate: int) -> float:
    """Optimizer steps of the warm-up, in which `accumulate` grows from 1, less those of as many batches after it.

    As the training loop counts them (engine/trainer.py, `_get_warmup_iterations` and `_do_train`).
    """
    n_warmup = round(min(warmup_epochs, max(epochs - 1, 0)) * n_batches)
    if n_warmup <= 0:
        return 0.0
    n_steps, last = 0, -1
    for i in range(n_warmup + 1):
        if i - last >= max(1, round(1 + (accumulate - 1) * i / n_warmup)):
            n_steps, last = n_steps + 1, i
    return max(0.0, n_steps - (last + 1) / accumulate)


def job_s(terms: Mapping[str, float | None]) -> float | None:
    """Sum of the known terms in seconds; None while the epochs themselves are unknown."""
    if terms.get("mosaic_epochs_s") is None:
        return None
    return sum(s for s in terms.values() if s is not None)


def with_job(
    result: TrialResult,
    baseline: TrialResult | None = None,
    cold_s: Mapping[str, float] | None = None,
    ends: Ends | None = None,
) -> TrialResult:
    """The same result with `job_terms`, `job_estimated` and `job_s` filled in."""
    terms, estimated = job_terms(result, baseline, cold_s, ends)
    return dataclasses.replace(result, job_terms=terms, job_estimated=estimated, job_s=job_s(terms))


def _start_s(phases_s: Mapping[str, float]) -> float | None:
    return phases_s["import"] + phases_s["build"] if "import" in phases_s and "build" in phases_s else None
