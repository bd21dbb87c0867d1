"""How does a search stand up again in its folder? Results are believed first; the study is mended after them."""

from __future__ import annotations

import logging
import time
from collections import Counter

from autotune.contract import NotTried, Outcome
from autotune.search.baseline import adopt
from autotune.search.epoch_ends import revalue
from autotune.search.past import Past
from autotune.search.plan import Plan
from autotune.search.proposals import Proposals, changes_of, key_of
from autotune.search.ran import Ran
from autotune.search.records import records_of
from autotune.search.session import Session
from autotune.search.study import Study

log = logging.getLogger(__name__)


def open_study(plan: Plan) -> tuple[Study, str]:
    """The study of this run, made when there is none; a file that cannot be read is put aside, never removed.

    Returns:
        The study, and a note when it is to be filled again from the results.
    """
    path, info = records_of(plan.run_dir).study, plan.info
    missing = path is not None and plan.past is not None and bool(plan.past.results) and not path.exists()

    def make() -> Study:
        return Study(path, objective=info.objective, strategy=info.strategy, seed=info.seed, command=info.command)

    if plan.past is None or path is None:
        return make(), ""
    try:
        return make(), f"{path.name} was missing: made again from the results" if missing else ""
    except Exception as e:  # a damaged file makes SQLite, SQLAlchemy and Optuna raise many things
        log.warning("%s cannot be read: %s", path, e)
        aside = path.with_name(f"{path.name}.unreadable-{time.strftime('%Y%m%d-%H%M%S')}")
        path.rename(aside)
        for journal in ("-journal", "-wal", "-shm"):
            path.with_name(path.name + journal).unlink(missing_ok=True)
        return make(), f"{path.name} could not be read: made again from the results; the old one is {aside.name}"


def restore(session: Session, past: Past) -> None:
    """Give the session what an earlier part measured: trials, prices, baseline, study, and what to try first."""
    unheard: list[Ran] = []
    first = past.baseline
    for result in past.results:
        baseline = session.proposals.baseline if session.proposals else None
        ran = session.judge(result, changes_of(result.params, baseline) if baseline else {})
        if first and result.number == first.number:
            job = dict(session.info.train_args)
            asked = job.get("batch")
            adopt(session, ran, {**job, **{k: past.baseline_args[k] for k in job.keys() & {"batch"}}}, asked)
        if result.number in past.unheard:
            unheard.append(session.ran[-1])
    if session.baseline is not None:
        revalue(session)
    for number in (r.number for r in unheard):
        session.record(next(r for r in session.ran if r.number == number))
    session.write_csv()
    _mend_study(session.study, session.ran, session.baseline)
    if session.proposals is None or session.baseline is None:
        return
    session.not_tried += past.not_tried
    _know(session, session.proposals)
    for number in dict.fromkeys((session.baseline.number, session.best().number)):
        session.show(next(r for r in session.ran if r.number == number))  # the views knew nothing of them


def _mend_study(study: Study, ran: list[Ran], baseline: Ran | None) -> None:
    """Every result told, under its own number; what started and has no result is told FAIL.

    The baseline is left to whoever measures the ends of its epochs, which belong to its worth (epoch_ends.of_baseline).
    """
    by_number = {r.number: r for r in ran}
    for number in range(max([*by_number, study.next_number - 1], default=-1) + 1):
        done = by_number.get(number)
        if number >= study.next_number:
            params = done.result.params if done else {}
            got, _ = study.ask(params, role=done.result.role if done else "trial")
            assert got == number, "the study numbers its trials in order"
        elif not study.is_running(number):
            continue
        if baseline is not None and number == baseline.number:
            continue
        if done:
            study.tell(number, done.result, done.value)
        else:
            study.skip(number, "interrupted")


def _know(session: Session, proposals: Proposals) -> None:
    """What was tried is known, what was interrupted once is tried first; seeds that were tried leave the queue."""
    tried = [r.result for r in session.ran if r.result.role == "trial"]
    finished = [r for r in tried if r.outcome is not Outcome.INTERRUPTED]
    for result in finished:
        proposals.known[key_of(result.params)] = result.number
    left = [seed for seed in proposals.queue if key_of(proposals.complete(seed)) not in proposals.known]
    proposals.queue.clear()
    proposals.queue.extend(left)
    for result in finished:
        if result.outcome is Outcome.MISMATCH:
            proposals.add_effective(result.params, result)
    stopped = {key_of(r.params): r for r in tried if r.outcome is Outcome.INTERRUPTED}
    times = Counter(key_of(r.params) for r in tried if r.outcome is Outcome.INTERRUPTED)
    for key, result in stopped.items():
        if key in proposals.known:
            continue
        if times[key] == 1:
            proposals.queue.appendleft({n: v for n, v in result.params.items() if n in session.study.domain})
        else:
            proposals.known[key] = None
            reason = f"the search ended {times[key]} times while it ran"
            session.not_tried.append(NotTried(params=result.params, price_s=None, reason=reason))
    failed = {key_of(r.result.params) for r in session.ran if r.result.role == "finalist" and r.failed}
    session.failed |= failed - {key_of(proposals.baseline)}
