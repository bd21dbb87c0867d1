"""What happens between Enter and the last line? Question, search, export, report; every decision is made in a room."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from autotune import atlas, resume
from autotune.accuracy import last_words, verified
from autotune.contract import (
    Observer,
    PhaseStarted,
    RunDir,
    RunEnded,
    RunInfo,
    RunStarted,
    Summary,
    Value,
    write_json,
)
from autotune.doctor.fitness import refuse_if_unfit
from autotune.errors import EXIT_INTERRUPTED, EXIT_NO_TRIAL, EXIT_OK, AutotuneError, NoTrialError, on_disk
from autotune.folders import label, make_folder, point_latest
from autotune.interrupts import Noted, deferred, uninterrupted
from autotune.job import Job, info_of, plan_of
from autotune.question import Request, understand
from autotune.replay import Replay, with_specs
from autotune.replay_question import understand_replay
from autotune.run.dataset import DatasetView
from autotune.run.leftover import kill_leftovers, sweep_files
from autotune.run.lock import lock_devices, lock_run, refuse_if_used
from autotune.run.preloaded import Preloaded
from autotune.run.trial import run_trial
from autotune.search import journal
from autotune.search.budget import Budget
from autotune.search.controller import search as run_search
from autotune.search.plan import RunTrial
from autotune.simulation import Simulation
from autotune.space.space import dump_space
from autotune.trackers import Tracker


def search(request: Request, observers: Sequence[Observer] = ()) -> tuple[Path, int]:
    """The whole job of `autotune search`.

    Returns:
        Run folder and exit code (0 or 130).

    Raises:
        AutotuneError: wrong input, and then nothing was written; or no trial succeeded (exit code 4); or the disk is
            full (exit code 3).
    """
    with on_disk("the run folder"), contextlib.ExitStack() as stack:
        job = (_go_on if request.resume else _begin)(request, observers, stack)
        folder = job.run_dir.path
        observers = (*observers, *(stack.enter_context(Tracker(name, folder)) for name in job.question.track))
        try:
            return folder, _answer(job, observers)
        finally:
            with uninterrupted():  # the second Ctrl-C may have come in the middle of killing a tree
                kill_leftovers(folder)
                sweep_files(job.run_dir)


def _begin(request: Request, observers: Sequence[Observer], stack: contextlib.ExitStack) -> Job:
    """A new run folder; the device and the folder are ours until the stack ends."""
    question = understand_replay(request) if request.replay else understand(request, observers)
    warnings = refuse_if_unfit(question)
    n_ranks = question.ctx.n_ranks
    budget = Budget(question.budget_s, started=question.began)
    budget.book("setup", budget.elapsed_s())
    sign = None
    if request.measures:
        sign = stack.enter_context(lock_devices(question.gpus))
        refuse_if_used(question.gpus, force=request.force)
    title = label(*question.title, question.machine, question.gpus, n_ranks)
    title = f"replay_{title}" if request.replay else title
    folder = make_folder(question.out, request.name or title)
    stack.enter_context(lock_run(folder))
    if sign:
        sign(folder)
    run_dir = RunDir(folder)
    info = info_of(question, folder.name, warnings)
    write_json(run_dir.machine, question.machine)
    run_dir.space.write_text(dump_space(question.space), encoding="utf-8")
    write_json(run_dir.info, info)  # last: what has it can be resumed
    return Job(question=question, run_dir=run_dir, info=info, budget=budget)


def _go_on(request: Request, observers: Sequence[Observer], stack: contextlib.ExitStack) -> Job:
    """The folder of an earlier search, when today's question is the one that it asks."""
    assert request.resume is not None
    run = resume.earlier(request.resume)
    asked = resume.as_asked(request, run)
    stack.enter_context(lock_run(run.run_dir.path))
    past = resume.clear_up(run)
    question = understand(asked, observers)
    resume.check(question, run, past)
    warnings = refuse_if_unfit(question)
    if not asked.dry_run:
        stack.enter_context(lock_devices(question.gpus))(run.run_dir.path)
        refuse_if_used(question.gpus, force=request.force)
    budget = Budget(past.elapsed_s + question.budget_s, started=question.began - past.elapsed_s)
    for purpose, seconds in past.ledger_s.items():
        budget.book(purpose, seconds)
    budget.book("setup", budget.elapsed_s() - past.elapsed_s)
    info = resume.continued(run.info, question, past, warnings)
    write_json(run.run_dir.info, info)
    question = replace(question, segment=past.segment or question.segment, headline=f"resumed: {question.headline}")
    return Job(question=question, run_dir=run.run_dir, info=info, budget=budget, past=past)


def _answer(job: Job, observers: Sequence[Observer]) -> int:
    """Search, export, report; returns the exit code."""
    question, run_dir, budget, folder = job.question, job.run_dir, job.budget, job.run_dir.path
    emit = partial(journal.emit, run_dir, observers)
    emit(
        RunStarted(
            t_s=budget.elapsed_s(),
            headline=question.headline,
            folder=_shown(folder),
            budget_s=job.info.budget_s,
            warnings=job.info.warnings,
        )
    )
    point_latest(question.out, folder)
    with contextlib.ExitStack() as ending, contextlib.ExitStack() as stack:
        interrupt = Noted()

        def measured(interrupted: bool) -> None:
            nonlocal interrupt
            interrupt = ending.enter_context(deferred(heard=interrupted))

        data_for: Callable[[Value], str] = lambda _: str(question.job["data"])  # noqa: E731 - nobody looks at an image
        if question.dataset:
            stack.callback(shutil.rmtree, folder / ".data", ignore_errors=True)
            data_for = stack.enter_context(DatasetView(question.job["data"], question.task, folder / ".data")).path
        try:
            run = _runner(job, stack)
            summary = run_search(plan_of(job, data_for), run, observers, measured)
            summary = verified(summary, question, run_dir, budget, data_for, emit, lambda: interrupt.heard)
        except NoTrialError:
            # The error itself is printed once, by the command line.
            sentence = f"no trial succeeded; what was tried stands in {_shown(run_dir.report)}"
            emit(RunEnded(t_s=budget.elapsed_s(), exit_code=EXIT_NO_TRIAL, sentence=sentence))
            _write_report(folder)
            raise
        stack.close()  # parents and images go before the report is timed, and no interrupt is in their way
        return _hand_over(job, summary, observers, interrupt)


def _runner(job: Job, stack: contextlib.ExitStack) -> RunTrial:
    """What runs a trial, or answers like it."""
    question, budget = job.question, job.budget
    if question.recording:
        return with_specs(Replay(question.recording, budget.skip, job.info.seed))
    warm = partial(run_trial, preloaded=stack.enter_context(Preloaded()), sampled=question.request.measures)
    return Simulation(budget, warm) if question.request.dry_run else warm


def _hand_over(job: Job, summary: Summary, observers: Sequence[Observer], interrupt: Noted) -> int:
    """Export, report and last words; returns the exit code."""
    run_dir, budget = job.run_dir, job.budget
    if job.info.label:  # the sentence is what people copy: it must not travel without the label
        said = summary.verdict.sentence
        if job.info.replayed:  # the proof, too, was answered from what was recorded
            said = said.replace("fresh runs", "recorded runs")
        verdict = replace(summary.verdict, sentence=f"{job.info.label}: {said}")
        summary = replace(summary, verdict=verdict)
        write_json(run_dir.summary, summary)
    journal.emit(run_dir, observers, PhaseStarted(t_s=budget.elapsed_s(), phase="report"))
    commands: tuple[str, ...] = ()
    failed: AutotuneError | None = None
    with budget.spend("report"):
        try:
            commands = _export(run_dir, summary, job.info)
        except AutotuneError as e:
            failed = e  # what was measured is still worth its report
    write_json(run_dir.summary, replace(summary, ledger_s=budget.ledger(), elapsed_s=budget.elapsed_s()))
    from autotune.report.break_even import last_lines

    page = run_dir.report
    ended = RunEnded(
        t_s=budget.elapsed_s(),
        exit_code=EXIT_INTERRUPTED if interrupt.heard else EXIT_OK,
        sentence=summary.verdict.sentence,
        also=(*last_lines(run_dir.path), *last_words(summary)),
        next_commands=(*commands, f"open {_shown(page)}"),
    )
    journal.emit(run_dir, (), ended)
    _write_report(run_dir.path)  # after the last event is journaled, before it is shown: its last line opens the page
    for observer in observers:
        observer(ended)
    if failed:
        raise failed
    if job.question.request.atlas:
        atlas.remember(run_dir, job.question.ctx.image_hw)
    return EXIT_INTERRUPTED if interrupt.heard else EXIT_OK


def _export(run_dir: RunDir, summary: Summary, info: RunInfo) -> tuple[str, ...]:
    """Write best/; returns the commands to use next. Of a replay there are none: the recorded run has its own."""
    if summary.best_number is None or info.replayed:
        return ()
    from autotune.report.export import export

    best = export(run_dir)
    plain, launch = f"yolo train cfg={_shown(best / 'best.yaml')}", f"bash {_shown(best / 'launch.sh')}"
    # Plain YOLO trains in one process on a CPU, which is another speed.
    return (launch,) if info.device == "cpu" and info.n_ranks > 1 else (plain, launch)


def _write_report(folder: Path) -> None:
    from autotune.report.html import write_report

    write_report(folder)


def _shown(path: Path) -> str:
    """A path to paste: relative where it lies below the current folder, quoted for the shell."""
    cwd = os.getcwd()  # noqa: PTH109 - as the shell would say it
    relative = os.path.relpath(path, cwd)
    return shlex.quote(str(path) if relative.startswith("..") else relative)
