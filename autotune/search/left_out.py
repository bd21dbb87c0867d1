"""What was proposed and not run, why, and what is the study told of it?"""

from __future__ import annotations

from typing import Final

from autotune.contract import NotTried, Params, TrialSkipped
from autotune.search.proposals import NOT_RECORDED, key_of
from autotune.search.session import Session

SHARE_OF_LEFT: Final = 0.15
"""A dearer trial is not started: it would have to win by more than it can (issue, item 7)."""


def never_tried(session: Session) -> tuple[NotTried, ...]:
    """Each once, with its last reason; what a resumed search found the time for is left out.

    Among them the one that the strategy's model last wanted and did not propose, since it is too large: users ask for
    it.
    """
    known = session.proposals.known if session.proposals else {}
    last = {key_of(n.params): n for n in session.not_tried}
    if (too_large := session.proposal.too_large) is not None:
        last.setdefault(key_of(too_large.params), too_large)
    return tuple(n for key, n in last.items() if known.get(key) is None)


def all_known(session: Session) -> str:
    """Why nothing is left to try."""
    left = [n for n in never_tried(session) if n.reason != NOT_RECORDED]
    n_oom = sum(n.predicted_oom for n in left)
    if not left:
        return "every configuration was measured"
    if not n_oom:
        return "only dear configurations are left"
    return f"only configurations that would run out of memory{' or are dear' if n_oom < len(left) else ''} are left"


def tell_duplicate(session: Session, number: int, original: int | None) -> None:
    """Tell a known configuration's value again, so that the sampler sees that its proposal was heard."""
    if original is None:
        session.study.skip(number, "left out before")
        return
    ran = next(r for r in session.ran if r.number == original)
    session.study.tell(number, ran.result, ran.value, duplicate_of=original)


def skip(session: Session, number: int, params: Params, price_s: float, left_s: float, room_s: float) -> None:
    """Leave out a configuration for its price."""
    if price_s > room_s:
        reason = f"would take {price_s:.0f} s; {max(0.0, room_s):.0f} s are left before the finalists"
    else:
        reason = f"would take {price_s:.0f} s, more than {SHARE_OF_LEFT:.0%} of the {left_s:.0f} s left"
    leave_out(session, number, NotTried(params=params, price_s=price_s, reason=reason))


def leave_out(session: Session, number: int, not_tried: NotTried) -> None:
    """List a configuration as not tried; one that would run out of memory is told as one that did."""
    assert session.proposals is not None
    session.not_tried.append(not_tried)
    session.proposals.known[key_of(not_tried.params)] = None
    session.study.skip(number, not_tried.reason, feasible=not not_tried.predicted_oom)
    session.emit(TrialSkipped(t_s=session.t_s, not_tried=not_tried))
