"""When are the ends of epochs measured? Once for the baseline, before the search, and once for every finalist.

Between the two a trial's are estimated from the baseline's (search/job_time.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from autotune.contract import Outcome, Params, TrialSpec
from autotune.search.proposals import key_of
from autotune.search.ran import Ran
from autotune.search.session import Session

BACKENDS: Final = ("yolo", "synthetic", "replay")
"""The ones that have this probe; a replay has the recorded ones."""
FOR_BASELINE: Final = 0.08
"""Of the budget at most: a job of many validations, or of many closed epochs, is judged wrongly without it."""
FOR_FINALISTS: Final = 0.08
"""Of the budget at most, for all finalists together; who gets none keeps the estimate."""
UNKNOWN_S: Final = 8.0
"""Guess of two validations, checkpoints and plots, until a probe has been run."""
DEADLINE: Final = 2.0
"""A probe is stopped at so many times its price."""


def of_baseline(session: Session) -> None:
    """Probe the user's own settings, and tell the study what they are worth: by the same terms as all that follows."""
    assert session.proposals is not None
    assert session.baseline is not None
    params = session.proposals.baseline
    # What an earlier part of this search told the study without these terms cannot be told again.
    begun = any(r.result.role == "trial" for r in session.ran)
    price_s = _price_s(session, params)
    if not begun and _wanted(session, params) and price_s <= FOR_BASELINE * session.plan.budget.total_s:
        session.phase("epoch ends", "validation, checkpoint, the steps without mosaic")
        _run(session, params, max(DEADLINE * price_s, FOR_BASELINE * session.plan.budget.total_s))
        revalue(session)
    if session.study.is_running(session.baseline.number):
        session.tell(session.baseline)


def of_finalists(session: Session, configs: Iterable[Params]) -> None:
    """Probe each configuration that is to be compared in fresh runs, as far as the time goes; the others keep the
    estimate.

    Args:
        session: the search has ended.
        configs: the finalists, the ones that matter most first.
    """
    assert session.proposals is not None
    baseline = session.proposals.baseline
    if not session.epoch_ends.has(baseline):
        return  # nothing to estimate the others from: all are compared without these terms
    began, budget = False, session.plan.budget
    for params in configs:
        price_s = _price_s(session, params)
        left_s = min(_unspent_s(session), budget.left_s() - session.plan.report_s)
        if not _wanted(session, params) or price_s > left_s:
            continue
        if not began:
            session.phase("epoch ends", "of the finalists")
            began = True
        _run(session, params, DEADLINE * price_s)
    if began:
        revalue(session)


def reserve_s(session: Session) -> float:
    """Seconds that the search should leave for the probe of the best so far; the other finalists' are a bonus."""
    assert session.proposals is not None
    if not session.epoch_ends.has(session.proposals.baseline):
        return 0.0
    best = session.best().result.params
    if not _wanted(session, best):
        return 0.0
    return min(_price_s(session, best), max(0.0, _unspent_s(session)))


def revalue(session: Session) -> None:
    """Give every trial its place in the objective anew: all by the same terms, whenever an interrupt comes."""
    before, first = session.ran, session.baseline
    # A trial's place depends on the results of the others, not on their places: none is changed before all are known.
    after = [session.valued(ran.result, ran.changes) for ran in before]
    session.ran = after
    if first is not None:
        session.baseline = next(ran for ran in after if ran.number == first.number)
    for old, anew in zip(before, after, strict=True):
        if anew.result != old.result:
            session.records.result(anew.result)
    session.write_csv()


def _wanted(session: Session, params: Params) -> bool:
    """Does the objective have these terms, and are they not known yet? What failed once is not run again."""
    ran = (r.result for r in session.ran if r.result.probe == "epoch_end")
    tried = any(key_of(r.params) == key_of(params) and r.outcome is not Outcome.INTERRUPTED for r in ran)
    return session.info.objective == "job_time" and session.info.backend in BACKENDS and not tried


def _run(session: Session, params: Params, limit_s: float) -> Ran:
    """One probe, with the user's own validation, checkpoints and plots."""
    job = session.info.train_args
    users = {key: job.get(key, True) for key in ("val", "save", "plots")}

    def vary(spec: TrialSpec) -> TrialSpec:
        return replace(spec, train_args={**spec.train_args, **users})

    ran = session.ask_and_run("probe", params, limit_s, "epoch_end", vary)
    if not session.epoch_ends.has(params):
        why = f"{ran.result.outcome}: {ran.result.error or 'it left no figures'}"
        session.notes.append(f"the end of an epoch was not measured (trial {ran.number}: {why})")
    return ran


def _price_s(session: Session, params: Params) -> float:
    """Seconds of one probe: a warm start, and what the last one took beside its start."""
    price = session.model.price(params, session.plan.segment, warm=True)
    done = [r.result for r in session.ran if r.result.probe == "epoch_end" and r.result.epoch_end is not None]
    rest_s = UNKNOWN_S + price.segment_s
    if done:
        phases = done[-1].phases_s
        rest_s = done[-1].took_s - sum(phases.get(name, 0.0) for name in ("import", "build", "cache", "first_step"))
    return price.launch_s + price.compile_s + price.cache_s + max(0.0, rest_s)


def _unspent_s(session: Session) -> float:
    """Seconds that the finalists' probes may still take; the first probe of a search is the baseline's."""
    budget = session.plan.budget
    spent = [r.result.took_s for r in session.ran if r.result.probe == "epoch_end"]
    return FOR_FINALISTS * budget.total_s - sum(spent[1:])
