"""Which proposals are not tried at all, whatever they would cost?"""

from __future__ import annotations

from autotune.contract import NotTried, Params
from autotune.search import repay
from autotune.search.proposals import NOT_RECORDED
from autotune.search.session import Session
from autotune.search.situation import situation_of


def vetoed(session: Session, params: Params) -> NotTried | None:
    """What a replay has no answer for, what cannot repay, and what memory will not suffice for; None: it may be tried."""
    assert session.proposals is not None
    if not session.proposals.exists(params):
        return NotTried(params=params, price_s=None, reason=NOT_RECORDED)
    if why_not := repay.why_not(situation_of(session), params):
        return NotTried(params=params, price_s=None, reason=why_not)
    if why_not := session.memory.why_not(params):
        return NotTried(params=params, price_s=None, reason=why_not, predicted_oom=True)
    return None
