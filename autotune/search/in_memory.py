"""What would a search find on a machine that answers by itself? The controller's own loop, with nothing on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autotune.contract import Observer, Params
from autotune.search.controller import look_around
from autotune.search.plan import Plan, RunTrial
from autotune.search.resume import open_study
from autotune.search.session import Session


def study_in_memory(
    plan: Plan,
    run_trial: RunTrial,
    observers: Sequence[Observer] = (),
    afterwards: Callable[[Session], object] = lambda session: None,
) -> Session:
    """Baseline, what is measured beside it, and the loop; no finalists, no files.

    Args:
        plan: as of a search; its `run_dir` is None, its budget's clock that of the machine.
        run_trial: the machine.
        observers: told of every event.
        afterwards: called when the loop has ended and more trials can still be run.

    Returns:
        The session as the loop, or `afterwards`, left it; `ran` are its trials in order.

    Raises:
        NoTrialError: the user's own arguments do not run.
    """
    assert plan.run_dir is None, "a study that is kept is a search"
    study, _ = open_study(plan)
    session = Session(plan, run_trial, observers, study)
    try:
        session.stopped_because = look_around(session)
        afterwards(session)
    finally:
        study.close()
    return session


@dataclass(frozen=True, slots=True)
class Incumbent:
    """What the user would be given, had the search ended here."""

    n_trials: int
    """Search trials so far, the baseline not among them."""
    at_s: float
    """Seconds since the search began, with all that was spent beside trials."""
    params: Params
    value: float
    """As measured, so that luck is in it."""


def incumbents(session: Session) -> list[Incumbent]:
    """The best measured value after the baseline and after each search trial, the ones that failed too."""
    found: list[Incumbent] = []
    for ran in session.ran:
        result = ran.result
        if result.role != "trial" and (session.baseline is None or ran.number != session.baseline.number):
            continue
        params, value = result.params, ran.value if result.outcome.measured else None
        if found and (value is None or value >= found[-1].value):
            params, value = found[-1].params, found[-1].value
        if value is not None:
            found.append(Incumbent(len(found), result.started_s + result.took_s, params, value))
    return found
