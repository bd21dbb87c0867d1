"""The loop: baseline first, ask, run, tell, finalists last; what did it conclude?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from autotune.contract import (
    MemoryCertificate,
    Numerics,
    Observer,
    Outcome,
    Summary,
    Verdict,
)
from autotune.errors import NoTrialError
from autotune.search import ablation, capacity, certificates, communication, epoch_ends, numerics, probes
from autotune.search.ablation import Ablated
from autotune.search.baseline import measure_baseline
from autotune.search.conclusion import verdict_of
from autotune.search.finalists import Stage, candidates_of, make_stage, reserve_s, run_blocks
from autotune.search.left_out import SHARE_OF_LEFT, all_known, leave_out, never_tried, skip, tell_duplicate
from autotune.search.objective import check_objective
from autotune.search.plan import Plan, RunTrial
from autotune.search.proposals import key_of
from autotune.search.ran import Ran
from autotune.search.records import records_of
from autotune.search.resume import open_study, restore
from autotune.search.session import COMPILE_LIMIT_S, Session
from autotune.search.situation import situation_of
from autotune.search.stopping import Stopping
from autotune.search.strategies import STRATEGIES, check_strategy
from autotune.search.study import writing_study
from autotune.search.vetoes import vetoed

SENTINEL_EVERY: Final = 8
DUPLICATES_IN_A_ROW: Final = 5
"""After so many known proposals the sampler is not believed: a random configuration is tried instead."""
SKIPS_IN_A_ROW: Final = 5
NO_TIME: Final = "no time for another trial"
INTERRUPTED: Final = "interrupted"


def search(
    plan: Plan,
    run_trial: RunTrial,
    observers: Sequence[Observer] = (),
    measured: Callable[[bool], object] = lambda interrupted: None,
) -> Summary:
    """Run a whole study, write its files, and say what it found.

    Args:
        plan: what to search and with how much time; `plan.run_dir` exists, where there is one.
        run_trial: runs one trial.
        observers: told of every event.
        measured: called once, when no more trial will run, with whether an interrupt was the reason; after it, no
            interrupt may be raised, or what was measured is not concluded.

    Returns:
        The summary, as in summary.json. After Ctrl-C, what there is by then, `stopped_because="interrupted"`; a
        second Ctrl-C passes through.

    Raises:
        NoTrialError: the user's own arguments do not run (the summary is written all the same).
        InputError: unknown objective or strategy.
        MachineError: the strategy needs a library that is missing, or the disk is full.
    """
    check_objective(plan.info.objective)
    check_strategy(plan.info.strategy)
    records = records_of(plan.run_dir)
    records.begin()
    with writing_study(records.study):
        return _search(plan, run_trial, observers, measured)


def _search(
    plan: Plan, run_trial: RunTrial, observers: Sequence[Observer], measured: Callable[[bool], object]
) -> Summary:
    study, note = open_study(plan)
    session = Session(plan, run_trial, observers, study)
    session.notes += [note] if note else []
    stage: Stage | None = None
    checked: Numerics | None = None
    fits: MemoryCertificate | None = None
    ablated: Ablated | None = None
    try:
        try:
            stopped = look_around(session)
            session.phase("search", f"ended: {stopped}")
            epoch_ends.of_finalists(session, candidates_of(session))
            stage = make_stage(session, keep_s=_reserve_s(session))
            if stage is not None:
                session.phase("finalists", f"{len(stage.configs)} configurations in interleaved blocks")
                run_blocks(session, stage)
            probes.of_best(session, _winner(session, stage).result.params)
            if stage is not None and stage.winner is not None:
                fits = certificates.check(session, stage.winner.result.params)
                checked = numerics.check(session, stage.winner.result.params)
            ablated = ablation.begin(session, stage)
            if ablated is not None:
                ablation.run(session, ablated)
            measured(False)  # in here, so that no interrupt finds a gap
        except KeyboardInterrupt:
            measured(True)
            stopped = INTERRUPTED
            session.notes.append("the search was interrupted: what stands here is what there was by then")
        except NoTrialError as e:
            measured(False)
            _conclude(session, None, stopped_because=e.message, verdict=verdict_of(session, None))
            raise
        verdict = numerics.warned(certificates.warned(verdict_of(session, stage), fits), checked)
        if stopped == INTERRUPTED and stage is None:
            verdict = Verdict(status="unconfirmed", sentence="unconfirmed: interrupted before fresh runs compared it")
        elif stage is None and verdict.status == "unconfirmed" and stopped.startswith(NO_TIME):
            verdict = replace(verdict, sentence=f"{verdict.sentence}: {stopped}, give a longer --budget")
        return _conclude(
            session, stage, stopped_because=stopped, verdict=verdict, checked=checked, fits=fits, ablated=ablated
        )
    finally:
        study.close()


def _conclude(
    session: Session,
    stage: Stage | None,
    *,
    stopped_because: str,
    verdict: Verdict,
    checked: Numerics | None = None,
    fits: MemoryCertificate | None = None,
    ablated: Ablated | None = None,
) -> Summary:
    """Write summary.json."""
    importance, note, n_feasible = session.study.importance()
    session.notes += [
        f"settings of the {name} stayed as the best has them: {why}" for name, why in session.proposal.inert.items()
    ]
    session.notes += session.proposal.doubts
    not_tried = never_tried(session)
    summary = Summary(
        stopped_because=stopped_because,
        elapsed_s=session.t_s,
        ledger_s=session.plan.budget.ledger(),
        best_number=_winner(session, stage).number if session.baseline else None,
        verdict=verdict,
        importance=importance,
        importance_note=note,
        n_feasible=n_feasible,
        not_tried=not_tried,
        n_predicted_oom=sum(n.predicted_oom for n in not_tried),
        frozen=session.frozen,
        notes=tuple(session.notes),
        numerics=checked,
        memory=fits,
        ablation=ablation.result_of(stage, ablated),
    )
    session.records.summary(summary)
    return summary


def look_around(session: Session) -> str:
    """All that comes before the proof: baseline, what is measured of it beside, and the loop; why that stopped."""
    if session.plan.past:
        restore(session, session.plan.past)
    if session.baseline is None:
        session.phase("baseline")
        measure_baseline(session)
    epoch_ends.of_baseline(session)
    capacity.of_baseline(session)
    communication.of_baseline(session)
    probes.of_baseline(session)
    session.phase("search", "; ".join(session.notes))  # what the user's own arguments fell back to, once
    return explore(session)


def explore(session: Session) -> str:
    """Seeds, then the sampler's proposals, until the budget has no time for another; returns why it stopped."""
    proposals, plan, study = session.proposals, session.plan, session.study
    assert proposals is not None
    propose = STRATEGIES[plan.info.strategy].propose
    left_after_baseline_s = plan.budget.left_s()
    stopping = Stopping()
    duplicates = skips = n_trials = 0
    # A resumed search first looks whether the machine is as it was.
    n_since_sentinel = SENTINEL_EVERY if plan.past and plan.past.baseline else 0
    while True:
        if not study.domain:
            return "nothing to search: no knob of the space has two values here"
        if plan.max_trials is not None and n_trials >= plan.max_trials:
            return f"{n_trials} trials, as many as were asked for"
        if proposals.exhausted():
            return all_known(session)
        if skips >= SKIPS_IN_A_ROW:
            return f"{NO_TIME}: the last {skips} proposals were too dear"
        left_s = plan.budget.left_s()
        room_s = left_s - reserve_s(session, left_after_baseline_s) - _reserve_s(session)
        room_s -= epoch_ends.reserve_s(session)
        limit_s = min(room_s, SHARE_OF_LEFT * left_s)
        ordinary_s = session.price_s(proposals.baseline, warm=True)
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
        situation = situation_of(session)
        proposal = propose(situation)
        session.proposal = proposal
        if not proposals.queue:
            job_s = session.best().value if plan.info.objective == "job_time" else None
            why = stopping.why(proposal, n_trials=situation.n_trials, price_s=ordinary_s, job_s=job_s)
            if why is not None:
                return why
        number, chosen = study.ask(proposals.queue.popleft() if proposals.queue else proposal.asked)
        params = proposals.complete(chosen)
        if key_of(params) in proposals.known:
            duplicates += 1
            tell_duplicate(session, number, proposals.known[key_of(params)])
            continue
        if left_out := vetoed(session, params, proposal):
            duplicates += 1  # nothing was learned from it: after some of them, a random configuration is tried
            leave_out(session, number, left_out)
            continue
        duplicates = 0
        price_s = session.price_s(params, warm=True)
        if price_s > limit_s:
            skips += 1
            skip(session, number, params, price_s, left_s, room_s)
            continue
        skips = 0
        n_since_sentinel += 1
        n_trials += 1
        proposals.known[key_of(params)] = number
        # The price may be wrong, but not without bound, and the finalists' reserve is not this trial's to spend.
        # A compile may be dearer still; if it never ends, half of the search is left for the others.
        compile_s = min(COMPILE_LIMIT_S, room_s / 2) if params.get("compile") else 0.0
        search_s = min(max(2 * price_s, 60.0, compile_s), max(room_s, 2 * price_s))
        try:
            guess = proposal.guess(params) if proposal.guess else None
            ran = session.run(number, "trial", params, session.settings(params), limit_s=search_s, guess=guess)
        except KeyboardInterrupt:
            session.tell_interrupted()
            raise
        session.tell(ran)
        if ran.result.outcome is Outcome.MISMATCH:
            proposals.add_effective(params, ran.result)


def _reserve_s(session: Session) -> float:
    """Seconds for what comes after the finalists."""
    proofs_s = certificates.reserve_s(session) + numerics.reserve_s(session)
    return probes.reserve_s(session) + proofs_s + ablation.reserve_s(session)


def _winner(session: Session, stage: Stage | None) -> Ran:
    """The search trial that won; the baseline where the user's own settings did."""
    assert session.baseline is not None
    if stage is None or stage.contest.leader is None:
        return session.best()
    return stage.winner or session.baseline
