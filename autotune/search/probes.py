"""What could this machine do at most? When the loader alone and the step alone are measured (ULTRALYTICS 9a 5)."""

from __future__ import annotations

from typing import Final

from autotune.contract import UNFELT, Outcome, Params, Probe
from autotune.search.session import Session

MOST_OF_BUDGET: Final = 0.06
"""All probes together: they explain a result and find none. Both of the best fit into five minutes on a CPU."""
FOR_BASELINE: Final = 1 / 3
"""Of that, what the baseline's probes may take; the rest is for the best, which the report is about."""
SEGMENT_FRAC: Final = 0.5
"""A probe's window is a third of a trial's, but process end and the mosaic buffer's epoch are no shorter."""
DEADLINE: Final = 2.0
"""A probe is stopped at so many times its price."""
WHAT: Final[dict[str, str]] = {"compute": "the step alone", "data": "the loader alone"}


def of_baseline(session: Session) -> None:
    """Probe the user's own settings, before the search."""
    assert session.proposals is not None
    share_s = FOR_BASELINE * MOST_OF_BUDGET * session.plan.budget.total_s
    _run(session, _missing(session, session.proposals.baseline), share_s)


def of_best(session: Session, params: Params) -> None:
    """Probe the settings of the winner, once it is known: the finalists have the first claim on the time."""
    left_s = session.plan.budget.left_s() - session.plan.report_s
    left_out = _run(session, _missing(session, params), left_s)
    if left_out:
        session.notes.append(
            f"not measured for lack of time: {' and '.join(WHAT[probe] for probe in left_out)}, with the best "
            "settings; a longer --budget says how near they are to what this machine can do"
        )


def reserve_s(session: Session) -> float:
    """Seconds that the search should leave for the probes of the best so far that would be run."""
    total_s, unspent_s = 0.0, _unspent_s(session)
    for price_s, *_ in _cheapest_first(session, _missing(session, session.best().result.params)):
        if total_s + price_s <= unspent_s:
            total_s += price_s
    return total_s


def _run(session: Session, missing: dict[Probe, Params], allowed_s: float) -> list[Probe]:
    """Run probes as far as the time goes; whatever becomes of one, the search goes on.

    Returns:
        The ones that were left out.
    """
    left_out: list[Probe] = []
    began = False
    for price_s, probe, params in _cheapest_first(session, missing):
        if price_s > min(allowed_s, _unspent_s(session)):
            left_out.append(probe)
            continue
        if not began:
            session.phase("probes")
            began = True
        ran = session.ask_and_run("probe", params, DEADLINE * price_s, probe)
        allowed_s -= ran.result.took_s
    return left_out


def _cheapest_first(session: Session, missing: dict[Probe, Params]) -> list[tuple[float, Probe, Params]]:
    priced = [(_price_s(session, probe, params), probe, params) for probe, params in missing.items()]
    return sorted(priced, key=lambda p: p[0])  # stable: of equal ones the step alone comes first


def _missing(session: Session, params: Params) -> dict[Probe, Params]:
    """Probes that would say something new of this configuration -> what to run."""
    # A compute probe takes a few batches from the loader: it need not fill a cache for them.
    uncached = session.plan.space.canonical({**params, "cache": False}) if "cache" in params else params
    wanted: dict[Probe, Params] = {"compute": uncached, "data": params}
    ran = [r.result for r in session.ran if r.result.role == "probe" and r.result.outcome is not Outcome.INTERRUPTED]
    return {
        probe: probed
        for probe, probed in wanted.items()
        if not any(r.probe == probe and _felt(probe, r.params) == _felt(probe, probed) for r in ran)
    }


def _felt(probe: Probe, params: Params) -> list[tuple[str, str]]:
    return sorted((k, repr(v)) for k, v in params.items() if k not in UNFELT[probe])


def _price_s(session: Session, probe: Probe, params: Params) -> float:
    price = session.model.price(params, session.plan.segment)
    compile_s = price.compile_s if probe == "compute" else 0.0
    return price.launch_s + compile_s + price.cache_s + SEGMENT_FRAC * price.segment_s


def _unspent_s(session: Session) -> float:
    """Seconds that all probes together may still take."""
    budget = session.plan.budget
    spent_s = sum(r.result.took_s for r in session.ran if r.result.probe in WHAT)  # the others have shares of their own
    return MOST_OF_BUDGET * budget.total_s - spent_s
