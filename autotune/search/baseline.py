"""What do the user's own settings give? Everything else is compared with them."""

from __future__ import annotations

import json
from typing import Any

from autotune.contract import Outcome
from autotune.errors import NoTrialError
from autotune.search.communication import transport_of
from autotune.search.plan import Settings
from autotune.search.proposals import Proposals, key_of
from autotune.search.ran import Ran
from autotune.search.session import Session


def measure_baseline(session: Session) -> None:
    """Run the user's own arguments, unchanged; when memory is short, with the largest halving of the batch that runs.

    One that hangs is run once more, if there is time: ranks that wait for each other do so now and then, and without a
    baseline there is no search.

    The study hears of it afterwards: only what really ran tells which values the domain has. What the baseline itself
    is worth it is told when the ends of its epochs are measured (search/epoch_ends.py).

    Raises:
        NoTrialError: they do not run.
    """
    plan, job = session.plan, dict(session.info.train_args)
    n_before = len(session.ran)  # a resumed search told the study of these
    predicted = plan.space.prepare({}, plan.n_images)
    session.knobs, session.frozen = tuple(predicted.baseline), dict(predicted.frozen)
    asked_batch, hung = job.get("batch"), False
    try:
        while True:
            params = dict(predicted.baseline)
            if job.get("batch") != asked_batch and "batch_per_gpu" in params:
                params["batch_per_gpu"] = int(job["batch"]) // session.info.n_ranks
            number = session.study.next_number + len(session.ran) - n_before
            ran = session.run(number, "baseline", params, Settings(session.trial_args(job), dict(plan.baseline_env)))
            if ran.result.outcome.measured and ran.value is not None:
                adopt(session, ran, job, asked_batch)
                return
            left_s = plan.budget.left_s() - plan.report_s
            if ran.result.outcome is Outcome.TIMEOUT and not hung and left_s > ran.result.took_s:
                hung = True
                session.notes.append(f"your own settings hung once here, and were run again: {ran.result.error}")
                continue
            half = _half(job.get("batch"), session.info.n_ranks)
            if ran.result.outcome is not Outcome.OOM or half is None:
                _refuse(session, ran)
            job["batch"] = half
    finally:
        for attempt in session.ran[n_before:]:
            session.study.ask(attempt.result.params, role="baseline")
            if session.baseline is None or attempt.number != session.baseline.number:
                session.tell(attempt)


def _half(batch: Any, n_ranks: int) -> int | None:
    """Half of a total batch, if every rank keeps an image; auto-batch (-1, 0.7) has no half."""
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 2 * n_ranks:
        return None
    return batch // 2 // n_ranks * n_ranks


def _refuse(session: Session, ran: Ran) -> None:
    """Stop: there is nothing to be compared with."""
    lacks = (
        "no energy was counted" if session.info.objective == "energy" and ran.result.images_per_s else "no throughput"
    )
    reasons = [f"trial {r.number}: {r.result.outcome}: {r.result.error or lacks}" for r in session.ran]
    hint = ran.result.hint or f"its log: {session.records.place(ran.number).log}"
    raise NoTrialError(f"your own settings do not run here: {'; '.join(reasons)}", hint)


def adopt(session: Session, ran: Ran, job: dict[str, Any], asked_batch: Any) -> None:
    """Make this trial, the last one, the baseline: domain, pinned optimizer and run.json come from what it really ran
    with. A resumed search keeps the domain it had.
    """
    plan, result = session.plan, ran.result
    halved = job.get("batch") != asked_batch
    n_images = result.job.get("n_images", plan.n_images)
    session.model.n_images = n_images
    transport = session.info.transport or transport_of(session, ran.number)
    prepared = plan.space.prepare(result.effective, n_images, job if halved else None, transport=transport)
    session.knobs, session.frozen = tuple(prepared.baseline), dict(prepared.frozen)
    domain = dict(session.info.domain or prepared.domain)
    session.study.domain = domain
    session.proposals = Proposals(prepared, domain, plan.space.canonical, session.info.seed, plan.only)
    session.proposals.known[key_of(session.proposals.baseline)] = ran.number
    session.write_info(
        resolved=dict(result.resolved),
        baseline_params=session.proposals.baseline,
        domain=domain,
        train_args=job,
        transport=transport,
    )
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
