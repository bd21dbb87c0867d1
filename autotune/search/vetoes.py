"""Which proposals are not tried at all, whatever they would cost?"""

from __future__ import annotations

from typing import Final

from autotune.contract import NotTried, Params
from autotune.search import repay
from autotune.search.proposals import NOT_RECORDED
from autotune.search.session import Session
from autotune.search.situation import Proposal, situation_of

MOST_OOM: Final = 0.2
"""A trial that is likelier than this to run out of memory is not launched (SEARCH 5.4)."""


def vetoed(session: Session, params: Params, proposal: Proposal) -> NotTried | None:
    """What a replay has no answer for, what cannot repay, and what memory will not suffice for; None: it may run.

    Args:
        session: the search.
        params: a configuration that may be tried next.
        proposal: the strategy's answer; where it has a model, that is asked too.
    """
    assert session.proposals is not None
    if not session.proposals.exists(params):
        return NotTried(params=params, price_s=None, reason=NOT_RECORDED)
    if why_not := repay.why_not(situation_of(session), params):
        return NotTried(params=params, price_s=None, reason=why_not)
    if why_not := session.memory.why_not(params):
        return NotTried(params=params, price_s=None, reason=why_not, predicted_oom=True)
    if proposal.oom is not None and (p := proposal.oom(params)) > MOST_OOM:
        reason = f"would run out of memory with a probability of {p:.0%}"
        return NotTried(params=params, price_s=None, reason=reason, predicted_oom=True)
    return None
