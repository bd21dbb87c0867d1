"""After how many epochs does a dearer start pay? Arithmetic on the terms of T(job) (SEARCH 3.6).

Two configurations A and B cost O_A + E t_A and O_B + E t_B for E epochs; where B starts dearer and its epochs are
shorter it wins from E* = (O_B - O_A) / (t_A - t_B) on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Final

from autotune.contract import JOB_TERMS, Params, TrialResult
from autotune.errors import AutotuneError
from autotune.report.load import RunData, load_run

ONCE: Final = ("start_s", "compile_s", "cache_build_s", "warmup_s", "final_s")
"""Terms that do not grow with the number of epochs; the others are shared out over them."""
COSTLY: Final = ("compile", "cache")
"""Knobs whose price is paid once."""
LEAST_GAIN_FRAC: Final = 0.02
"""Of an epoch: what is less may be noise, and noise pays after any number of epochs."""
LEAST_COST_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What a job costs once, and in each of its epochs on average, in seconds."""

    once_s: float
    epoch_s: float


def costs_of(runs: Sequence[TrialResult], epochs: int) -> Costs | None:
    """Means over runs of one configuration, of the terms that all of them know; None while the epochs are unknown."""
    known = [r for r in runs if r.job_s is not None and r.job_terms.get("mosaic_epochs_s") is not None]
    if not known or epochs < 1:
        return None
    mean = {t: fmean(r.job_terms.get(t) or 0.0 for r in known) for t in JOB_TERMS}
    once_s = sum(mean[t] for t in ONCE)
    return Costs(once_s=once_s, epoch_s=(sum(mean.values()) - once_s) / epochs)


def break_even_epochs(a: Costs, b: Costs) -> float | None:
    """Epochs from which on B is the faster job; None where there is no such number, or nothing is to be paid back.

    E* = (O_B - O_A) / (t_A - t_B). None where B's epochs are not shorter by LEAST_GAIN_FRAC, or its start is not dearer
    by LEAST_COST_S.
    """
    cost_s, gain_s = b.once_s - a.once_s, a.epoch_s - b.epoch_s
    if cost_s < LEAST_COST_S or gain_s < LEAST_GAIN_FRAC * a.epoch_s:
        return None
    return cost_s / gain_s


def sentence(what: str, epochs_needed: float, epochs: int) -> str:
    """`compile pays after 7 epochs; your job has 100`."""
    n = math.ceil(epochs_needed)
    does = "pays" if n <= epochs else "would pay"
    return f"{what} {does} after {n} {'epoch' if n == 1 else 'epochs'}; your job has {epochs}"


def sentences(run: RunData) -> tuple[str, ...]:
    """What pays after how many epochs in this run: the best settings, and its compile and cache alone.

    Compile and cache are judged by trials that differ from the best in that knob alone, where there is one, in
    whichever of the two the knob is set.
    """
    own, best = runs_of(run, "baseline"), runs_of(run, "best")
    if not own or not best:
        return ()
    epochs = int(own[0].job.get("epochs") or 0)
    mine, theirs = costs_of(own, epochs), costs_of(best, epochs)
    if mine is None or theirs is None:
        return ()
    said = []
    if best[0].params != own[0].params and (needed := break_even_epochs(mine, theirs)) is not None:
        said.append(sentence("the best found", needed, epochs))
    for knob in COSTLY:
        for other in _differing(run, best[0].params, knob):
            costs = costs_of([other], epochs)
            with_it, without = (theirs, costs) if best[0].params.get(knob) else (costs, theirs)
            value = best[0].params.get(knob) or other.params.get(knob)
            if with_it and without and (needed := break_even_epochs(without, with_it)) is not None:
                said.append(sentence(knob if knob == "compile" else f"{knob}={value}", needed, epochs))
                break
    return tuple(said)


def last_lines(folder: Path) -> tuple[str, ...]:
    """The sentences of a finished run, for the end of the search; none where its folder cannot be read."""
    try:
        run = load_run(folder)
    except AutotuneError:
        return ()
    return tuple(f"{run.info.label}: {said}" if run.info.label else said for said in sentences(run))


def runs_of(run: RunData, name: str) -> list[TrialResult]:
    """Finalist runs of this name where there are some, else the search's own."""
    finalist = next((f for f in run.summary.verdict.finalists if f.name == name), None) if run.summary else None
    runs = [run.result(n) for n in finalist.numbers] if finalist else []
    measured = [r for r in runs if r and r.outcome.measured]
    if measured:
        return measured
    one = run.baseline if name == "baseline" else run.result(run.summary.best_number) if run.summary else None
    return [one] if one and one.outcome.measured else []


def _differing(run: RunData, params: Params, knob: str) -> list[TrialResult]:
    """Measured whole trainings that differ from these settings in this knob alone, one of the two without it."""

    def rest(p: Params) -> str:
        return json.dumps({k: v for k, v in p.items() if k != knob}, sort_keys=True)

    return [
        r
        for r in run.results
        if r.role != "probe"
        and r.outcome.measured
        and rest(r.params) == rest(params)
        and bool(r.params.get(knob)) != bool(params.get(knob))
    ]
