"""What would it bring to mend what the doctor finds? `autotune doctor --measure`: short fresh runs, interleaved.

As it is, the job runs once in every block, and once with each suspect taken away, in shuffled order. The ratio of the
two and its interval are those of the finalist stage (search/verdict.py), which hold for all suspects together; times
the mean rate of the runs as they are, they are images/s. How many blocks there are and what is in them is decided by
how long runs take, never by what they show.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import psutil

from autotune.contract import Deadlines, Probe, RunDir, TrialResult, TrialSpec
from autotune.doctor.examination import doctor
from autotune.doctor.pricelist import Priced, prices_of
from autotune.doctor.suspects import (
    Suspect,
    Unpriced,
    of_cache,
    of_cold_reads,
    of_environment,
    of_threads,
    of_workers,
    with_workers,
    worker_counts,
)
from autotune.errors import EXIT_ENVIRONMENT, EXIT_INTERRUPTED, EXIT_OK, NoTrialError
from autotune.interrupts import uninterrupted
from autotune.machine.environment import without_home
from autotune.question import TRIAL_ARGS, Question, Request, understand
from autotune.report import words
from autotune.report.advice import advise
from autotune.report.limits import Rates
from autotune.run.dataset import DatasetView
from autotune.run.leftover import kill_leftovers, sweep_files
from autotune.run.lock import lock_devices, refuse_if_used
from autotune.run.page_cache import PageCache, drop_page_cache, warm_page_cache
from autotune.run.trial import run_trial
from autotune.search.budget import Budget, parse_budget
from autotune.search.plan import RunTrial
from autotune.search.verdict import BASELINE, MIN_BLOCKS

MARGIN: Final = 1.15
"""Run times vary on a busy machine."""
FIRST_FRAC: Final = 0.5
"""A later run's time over that of the very first, which may read all libraries from disk: supposed. In a new virtual
environment the first of a job of 6 s took so long that a budget of two minutes seemed too short."""
PROBES_FRAC: Final = 0.35
"""Of the budget, until the loader alone and the step alone have run; blocks are what gives a price."""
MAX_BLOCKS: Final = 8
READING_FRAC: Final = 0.05
TRIAL_LIMIT_S: Final = 600.0
TOO_SHORT: Final = f"fewer than {MIN_BLOCKS} blocks were run: give a longer --budget"

Say = Callable[[str], object]


class _Runs:
    """Runs of the job that differ from it in what a suspect changes."""

    def __init__(
        self, question: Question, folder: Path, view: DatasetView, budget: Budget, run: RunTrial, say: Say
    ) -> None:
        self.question, self.folder, self._view, self.budget, self._run, self._say = (
            question,
            folder,
            view,
            budget,
            run,
            say,
        )
        self._n = 0

    def __call__(self, what: str, suspect: Suspect | None = None, probe: Probe | None = None) -> TrialResult:
        """One run, in fresh processes."""
        question, number, args = self.question, self._n, suspect.args if suspect else {}
        self._n += 1
        device = ",".join(map(str, range(len(question.gpus)))) or "cpu"
        cache = args.get("cache", question.job.get("cache", False))
        spec = TrialSpec(
            number=number,
            role="probe" if probe else "finalist",
            probe=probe,
            backend="yolo",
            task=question.task,
            params={},
            changes={},
            train_args={**question.job, **args, "data": self._view.path(cache), **TRIAL_ARGS, "device": device},
            env=suspect.env if suspect else {},
            patches=suspect.patches if suspect else {},
            gpus=question.gpus,
            n_ranks=question.ctx.n_ranks,
            segment=question.segment,
            deadlines=Deadlines(total_s=max(1.0, min(TRIAL_LIMIT_S, self.budget.left_s()))),
        )
        cold = suspect is not None and suspect.cold
        if cold:
            drop_page_cache(question.job["data"], question.task)
        result = self._run(spec, RunDir(self.folder).trial(number), started_s=self.budget.elapsed_s())
        if cold:
            self.warm()
        rate = words.rate(result.images_per_s, result.ci95_lo, result.ci95_hi) if result.outcome.measured else None
        self._say(f"run {number + 1}: {what}: {rate or f'{result.outcome}: {result.error}'}")
        return result

    def warm(self) -> PageCache:
        """Read the dataset into memory, so that all runs but the cold ones find it there."""
        limit_s, ram = READING_FRAC * self.budget.total_s, psutil.virtual_memory().available
        return warm_page_cache(self.question.job["data"], self.question.task, free_ram_bytes=ram, limit_s=limit_s)


def measure(
    request: Request, *, ranks: int | None = None, run: RunTrial = run_trial, say: Say = lambda line: None
) -> Priced:
    """The whole job of `autotune doctor --measure`, but for what the doctor says without it.

    Args:
        request: the job; its budget is for all of this.
        ranks: as the doctor's.
        run: runs one trial.
        say: told of each run as it ends.

    Raises:
        AutotuneError: wrong input, a device in use, or the job as it is does not run.
    """
    question = understand(replace(request, ranks=None if request.gpus else ranks))
    budget, found = Budget(question.budget_s, started=question.began), Priced()
    with contextlib.ExitStack() as stack:
        sign = stack.enter_context(lock_devices(question.gpus))
        refuse_if_used(question.gpus, force=request.force)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="autotune-prices-")))
        sign(folder)
        stack.callback(_clear_up, RunDir(folder))
        view = stack.enter_context(DatasetView(question.job["data"], question.task, folder / "data"))
        free = psutil.disk_usage(str(folder)).free
        question = replace(question, ctx=replace(question.ctx, free_disk_bytes=free))
        runs = _Runs(question, folder, view, budget, run, say)
        try:
            _price(runs, found, _suspects(runs, found, runs.warm()))
        except KeyboardInterrupt:
            found.interrupted = True
    return found


def _clear_up(run_dir: RunDir) -> None:
    with uninterrupted():
        kill_leftovers(run_dir.path)
        sweep_files(run_dir)


def _suspects(runs: _Runs, found: Priced, pages: PageCache) -> list[Suspect]:
    """Run the job as it is, its loader and its step alone, and say from that what deserves a price."""
    question, budget = runs.question, runs.budget
    own = runs("the job as it is")
    if not own.outcome.measured:
        raise NoTrialError(f"the job does not run as it is: {own.outcome}: {own.error}", own.hint or "")
    now = int(own.effective.get("workers", question.ctx.train_args["workers"]))
    # The first suspect has the first claim on the time.
    until_s = min(PROBES_FRAC * budget.total_s, budget.total_s - 2 * MIN_BLOCKS * MARGIN * own.took_s)
    step = None
    wanted: list[int | None] = [now, None, *(n for n in reversed(worker_counts(question)) if n != now)]
    for workers in wanted:
        if budget.elapsed_s() + own.took_s > until_s:
            break
        if workers is None:
            step = runs("the step alone", probe="compute")
            continue
        name = f"the loader alone, workers={workers}"
        other = with_workers(workers, name, question.device == "cpu")
        result = runs(name, None if workers == now else other, "data")
        if result.outcome.measured and result.images_per_s:
            found.loader[workers] = result.images_per_s
    step_rate = step.images_per_s if step and step.outcome.measured else None
    found.advice = advise(
        own,
        question.machine,
        gpus=question.gpus,
        n_ranks=question.ctx.n_ranks,
        rates=Rates(data=found.loader.get(now), compute=step_rate),
    )
    n_read = (own.images_per_s or 0.0) * sum(own.phases_s.get(p, 0.0) for p in ("warmup", "measure"))
    asked = [
        of_environment(question),
        of_workers(now, found.loader, step_rate, question.device == "cpu"),
        of_threads(question),
        of_cache(question),
        of_cold_reads(question, pages.fits, pages.cold_images_per_s, n_read),
    ]
    found.unpriced += [s for s in asked if isinstance(s, Unpriced)]
    suspects = [s for s in asked if isinstance(s, Suspect)]
    n_fit = max(0, int(budget.left_s() / (MIN_BLOCKS * MARGIN * own.took_s)) - 1)
    if not n_fit and budget.left_s() >= 2 * MIN_BLOCKS * FIRST_FRAC * own.took_s:
        n_fit = 1
    need_s = budget.elapsed_s() + (1 + len(suspects)) * MIN_BLOCKS * MARGIN * own.took_s
    why = f"no time for {MIN_BLOCKS} blocks; --budget {int(need_s // 60) + 1}m would have it"
    found.unpriced += [Unpriced(name=s.name, why=why) for s in suspects[n_fit:]]
    return suspects[:n_fit]


def _price(runs: _Runs, found: Priced, suspects: Sequence[Suspect]) -> None:
    """Blocks of all that are left, as many as the budget holds; one that does not run gets no price."""
    rng, left, run_s = random.Random(0), {s.name: s for s in suspects}, 0.0
    blocks: list[dict[str, float]] = []
    try:
        while left and len(blocks) < MAX_BLOCKS:
            n_runs = runs.budget.left_s() / (MARGIN * run_s) if run_s else math.inf
            n_kept = _n_kept(len(left), len(blocks), n_runs)
            if not n_kept:
                break
            for name in list(left)[n_kept:]:
                found.unpriced.append(Unpriced(name=left.pop(name).name, why=TOO_SHORT))
            began_s, block = runs.budget.elapsed_s(), dict[str, float]()
            blocks.append(block)
            for name in rng.sample([BASELINE, *left], 1 + len(left)):
                suspect = left.get(name)
                result = runs(_what(suspect), suspect)
                if result.outcome.measured and result.images_per_s:
                    block[name] = 1 / result.images_per_s
                elif suspect:
                    why = f"{suspect.other} did not run: {result.outcome}: {result.error}"
                    found.unpriced.append(Unpriced(name=left.pop(name).name, why=why))
            run_s = max(run_s, (runs.budget.elapsed_s() - began_s) / (1 + n_kept))
    except KeyboardInterrupt:
        found.interrupted = True
    priced = prices_of(blocks, list(left.values()))
    found.prices += priced
    missing = [s for s in left.values() if s.name not in {p.name for p in priced}]
    why = "interrupted" if found.interrupted else TOO_SHORT
    found.unpriced += [Unpriced(name=s.name, why=why) for s in missing]


def _n_kept(n_left: int, n_blocks: int, n_runs: float) -> int:
    """How many of the suspects that are left the next block should hold; 0 ends the blocks.

    Runs may take longer than the first let suppose: the last suspects are given up, so that the others get the blocks
    that a price needs.

    Args:
        n_left: suspects.
        n_blocks: blocks that were run.
        n_runs: so many runs the budget still holds.
    """
    if n_blocks >= MIN_BLOCKS:
        return n_left if 1 + n_left < n_runs else 0
    n_fit = int(min(n_runs, 1e6) / (MIN_BLOCKS - n_blocks)) - 1
    # The last suspect stays as long as a block fits: the others may have been given up too early.
    return min(n_left, max(n_fit, int(n_runs > 2)))


def _what(suspect: Suspect | None) -> str:
    """A run of a block, in words."""
    if suspect is None:
        return "the job as it is"
    return suspect.name if suspect.cold else suspect.other


def run_verb(request: Request, *, as_json: bool, say: Say, ranks: int | None = None, **asked: Any) -> int:
    """`autotune doctor --measure`: the doctor's examination, then prices; returns the exit code.

    Args:
        request: as in `measure`.
        as_json: for machines.
        say: gets the lines as they are known.
        ranks: as in `doctor`.
        asked: the other arguments of `doctor`.

    Raises:
        AutotuneError: as `measure`.
    """
    parse_budget(request.budget)  # or its fault would stand below a page of findings

    def tell(lines: Sequence[str], told: Mapping[str, Any]) -> None:
        text = json.dumps(told, indent=1, ensure_ascii=False) if as_json else "\n".join(lines)
        say(without_home(text, os.environ))  # it is pasted into issues

    examined = doctor(request, ranks=ranks, **asked)
    if not as_json:
        tell(examined.lines, {})
    if examined.failed:
        tell(["no prices: a check fails, figures would mean nothing"], examined.json)
        return EXIT_ENVIRONMENT
    found = measure(request, ranks=ranks, say=lambda line: None if as_json else tell([line], {}))
    tell(["", *found.lines], examined.json | found.json)
    return EXIT_INTERRUPTED if found.interrupted else EXIT_OK
