"""The loop: baseline first, ask, run, tell, finalists last; what did it conclude?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from autotune.contract import (
    NotTried,
    Observer,
    Outcome,
    Params,
    Summary,
    TrialSkipped,
    Verdict,
    write_json,
)
from autotune.errors import NoTrialError
from autotune.search import probes
from autotune.search.finalists import Stage, configs_of, reserve_s, run_blocks, verdict_of
from autotune.search.objective import check_objective
from autotune.search.plan import Plan, RunTrial
from autotune.search.proposals import Proposals, key_of
from autotune.search.samplers import check_strategy
from autotune.search.session import Ran, Session, Settings
from autotune.search.study import Study

SENTINEL_EVERY: Final = 8
DUPLICATES_IN_A_ROW: Final = 5
"""After so many known proposals the sampler is not believed: a random configuration is tried instead."""
SKIPS_IN_A_ROW: Final = 5
SHARE_OF_LEFT: Final = 0.15
"""A dearer trial is not started: it would have to win by more than it can (issue, item 7)."""
NO_TIME: Final = "no time for another trial"
INTERRUPTED: Final = "interrupted"


def search(plan: Plan, run_trial: RunTrial, observers: Sequence[Observer] = ()) -> Summary:
    """Run a whole study, write its files, and say what it found.

    Args:
        plan: what to search and with how much time; `plan.run_dir` exists.
        run_trial: runs one trial.
        observers: told of every event.

    Returns:
        The summary, as in summary.json. After Ctrl-C, what there is by then, `stopped_because="interrupted"`; a
        second Ctrl-C passes through.

    Raises:
        NoTrialError: the user's own arguments do not run (the summary is written all the same).
        InputError: unknown objective or strategy.
        MachineError: the strategy needs a library that is missing.
    """
    info = plan.info
    check_objective(info.objective)
    check_strategy(info.strategy)
    plan.run_dir.trials.mkdir(parents=True, exist_ok=True)
    study = Study(
        plan.run_dir.study, objective=info.objective, strategy=info.strategy, seed=info.seed, command=info.command
    )
    session = Session(plan, run_trial, observers, study)
    stage: Stage | None = None
    try:
        try:
            session.phase("baseline")
            measure_baseline(session)
            probes.of_baseline(session)
            session.phase("search", "; ".join(session.notes))  # what the user's own arguments fell back to, once
            stopped = explore(session)
            probes.of_best(session)
            stage = _finalists(session)
            if stage is not None:
                session.phase("finalists", f"{len(stage.configs)} configurations in interleaved blocks")
                run_blocks(session, stage)
        except KeyboardInterrupt:
            stopped = INTERRUPTED
            session.notes.append("the search was interrupted: what stands here is what there was by then")
        except NoTrialError as e:
            _conclude(session, stopped_because=e.message, verdict=verdict_of(session, None))
            raise
        verdict = verdict_of(session, stage)
        if stopped == INTERRUPTED and stage is None:
            verdict = Verdict(status="unconfirmed", sentence="unconfirmed: interrupted before fresh runs compared it")
        elif stage is None and verdict.status == "unconfirmed" and stopped.startswith(NO_TIME):
            verdict = replace(verdict, sentence=f"{verdict.sentence}: {stopped}, give a longer --budget")
        return _conclude(session, stopped_because=stopped, verdict=verdict)
    finally:
        study.close()


def _conclude(session: Session, *, stopped_because: str, verdict: Verdict) -> Summary:
    """Write summary.json."""
    importance, note, n_feasible = session.study.importance()
    summary = Summary(
        stopped_because=stopped_because,
        elapsed_s=session.t_s,
        ledger_s=session.plan.budget.ledger(),
        best_number=session.best().number if session.baseline else None,
        verdict=verdict,
        importance=importance,
        importance_note=note,
        n_feasible=n_feasible,
        not_tried=tuple(session.not_tried),
        frozen=session.frozen,
        notes=tuple(session.notes),
    )
    write_json(session.plan.run_dir.summary, summary)
    return summary


def measure_baseline(session: Session) -> None:
    """Run the user's own arguments, unchanged; when memory is short, with the largest halving of the batch that runs.

    The study hears of it afterwards: only what really ran tells which values the domain has.

    Raises:
        NoTrialError: they do not run.
    """
    plan, job = session.plan, dict(session.info.train_args)
    predicted = plan.space.prepare({}, plan.n_images)
    session.knobs, session.frozen = tuple(predicted.baseline), dict(predicted.frozen)
    asked_batch = job.get("batch")
    try:
        while True:
            params = dict(predicted.baseline)
            if job.get("batch") != asked_batch and "batch_per_gpu" in params:
                params["batch_per_gpu"] = int(job["batch"]) // session.info.n_ranks
            number = session.study.next_number + len(session.ran)
            ran = session.run(number, "baseline", params, Settings(session.trial_args(job)))
            if ran.result.outcome.measured and ran.value is not None:
                _adopt(session, ran, job, asked_batch)
                return
            half = _half(job.get("batch"), session.info.n_ranks)
            if ran.result.outcome is not Outcome.OOM or half is None:
                _refuse(session, ran)
            job["batch"] = half
    finally:
        for attempt in session.ran:
            session.study.ask(attempt.result.params, role="baseline")
            session.tell(attempt)


def _half(batch: Any, n_ranks: int) -> int | None:
    """Half of a total batch, if every rank keeps an image; auto-batch (-1, 0.7) has no half."""
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 2 * n_ranks:
        return None
    return batch // 2 // n_ranks * n_ranks


def _refuse(session: Session, ran: Ran) -> None:
    """Stop: there is nothing to be compared with."""
    reasons = [f"trial {r.number}: {r.result.outcome}: {r.result.error or 'no throughput'}" for r in session.ran]
    hint = ran.result.hint or f"its log: {session.plan.run_dir.trial(ran.number).log}"
    raise NoTrialError(f"your own settings do not run here: {'; '.join(reasons)}", hint)


def _adopt(session: Session, ran: Ran, job: dict[str, Any], asked_batch: Any) -> None:
    """Make this trial the baseline: domain, pinned optimizer and run.json come from what it really ran with."""
    plan, result = session.plan, ran.result
    halved = job.get("batch") != asked_batch
    n_images = result.job.get("n_images", plan.n_images)
    session.model.n_images = n_images
    prepared = plan.space.prepare(result.effective, n_images, job if halved else None)
    session.knobs, session.frozen = tuple(prepared.baseline), dict(prepared.frozen)
    session.study.domain = dict(prepared.domain)
    session.proposals = Proposals(prepared, plan.space.canonical, session.info.seed)
    session.proposals.known[key_of(session.proposals.baseline)] = ran.number
    session.write_info(resolved=dict(result.resolved), baseline_params=session.proposals.baseline, train_args=job)
    session.replace_last_params(session.proposals.baseline)
    session.baseline = session.ran[-1]
    if halved:
        session.notes.append(
            f"batch={asked_batch} runs out of memory here: the baseline is batch={job['batch']}, the largest "
            "halving that runs"
        )
    for name, got in session.proposals.baseline.items():
        asked = job.get(name)
        if name in job and asked is not None and got is not None and json.dumps(asked) != json.dumps(got):
            session.notes.append(f"asked {name}={asked}, runs with {name}={got} here: that is the baseline")


def explore(session: Session) -> str:
    """Seeds, then the sampler's proposals, until the budget has no time for another; returns why it stopped."""
    proposals, plan, study = session.proposals, session.plan, session.study
    assert proposals is not None
    left_after_baseline_s = plan.budget.left_s()
    n_since_sentinel = duplicates = skips = n_trials = 0
    while True:
        if not study.domain:
            return "nothing to search: no knob of the space has two values here"
        if plan.max_trials is not None and n_trials >= plan.max_trials:
            return f"{n_trials} trials, as many as were asked for"
        if proposals.exhausted():
            return "every configuration was measured" if not session.not_tried else "only dear configurations are left"
        if skips >= SKIPS_IN_A_ROW:
            return f"{NO_TIME}: the last {skips} proposals were too dear"
        left_s = plan.budget.left_s()
        room_s = left_s - reserve_s(session, left_after_baseline_s) - probes.reserve_s(session)
        limit_s = min(room_s, SHARE_OF_LEFT * left_s)
        ordinary_s = session.price_s(proposals.baseline)
        if ordinary_s > limit_s:
            return NO_TIME
        if n_since_sentinel >= SENTINEL_EVERY:
            n_since_sentinel = 0
            session.ask_and_run("sentinel", proposals.baseline)
            continue
        if duplicates >= DUPLICATES_IN_A_ROW and not proposals.queue:
            unseen = proposals.unseen()
            if unseen is None:
                return "every configuration was measured"
            proposals.queue.append(unseen)
        number, chosen = study.ask(proposals.queue.popleft() if proposals.queue else None)
        params = proposals.complete(chosen)
        if key_of(params) in proposals.known:
            duplicates += 1
            _tell_duplicate(session, number, proposals.known[key_of(params)])
            continue
        duplicates = 0
        price_s = session.price_s(params)
        if price_s > limit_s:
            skips += 1
            _skip(session, number, params, price_s, left_s, room_s)
            continue
        skips = 0
        n_since_sentinel += 1
        n_trials += 1
        proposals.known[key_of(params)] = number
        # The price may be wrong, but not without bound, and the finalists' reserve is not this trial's to spend.
        search_s = min(max(2 * price_s, 60.0), max(room_s, 2 * price_s))
        try:
            ran = session.run(number, "trial", params, session.settings(params), limit_s=search_s)
        except KeyboardInterrupt:
            session.tell_interrupted()
            raise
        session.tell(ran)
        if ran.result.outcome is Outcome.MISMATCH:
            proposals.add_effective(params, ran.result)


def _tell_duplicate(session: Session, number: int, original: int | None) -> None:
    """Tell a known configuration's value again, so that the sampler sees that its proposal was heard."""
    if original is None:
        session.study.skip(number, "skipped before for its price")
        return
    ran = next(r for r in session.ran if r.number == original)
    session.study.tell(number, ran.result, ran.value, duplicate_of=original)


def _skip(session: Session, number: int, params: Params, price_s: float, left_s: float, room_s: float) -> None:
    """List a configuration as not tried."""
    assert session.proposals is not None
    if price_s > room_s:
        reason = f"would take {price_s:.0f} s; {max(0.0, room_s):.0f} s are left before the finalists"
    else:
        reason = f"would take {price_s:.0f} s, more than {SHARE_OF_LEFT:.0%} of the {left_s:.0f} s left"
    not_tried = NotTried(params=params, price_s=price_s, reason=reason)
    session.not_tried.append(not_tried)
    session.proposals.known[key_of(params)] = None
    session.study.skip(number, reason)
    session.emit(TrialSkipped(t_s=session.t_s, not_tried=not_tried))


def _finalists(session: Session) -> Stage | None:
    """The stage that this search's winner needs; None when the baseline was not beaten."""
    best = session.best()
    if not best.changes:
        return None
    configs, note = configs_of(session, best)
    if note:
        session.notes.append(note)
    return Stage(configs)
