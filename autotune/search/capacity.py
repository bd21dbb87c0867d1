"""How large may the batch be? Short probes before the search, where the baseline alone does not tell."""

from __future__ import annotations

from typing import Final

from autotune.contract import Outcome, Params
from autotune.machine.memory import spell_size
from autotune.search.memory import BATCH, HEADROOM_FRAC
from autotune.search.session import Session

N_PROBES: Final = 2
"""With the baseline three batches: two fix a line, the third says how well it fits."""
MOST_OF_BUDGET: Final = 0.06
"""A trial that runs out of memory costs as much as a probe, and every one that is left out saves as much."""
DEADLINE: Final = 2.0
"""A probe is stopped at so many times its price."""


def of_baseline(session: Session) -> None:
    """Run the user's own settings with smaller batches, until it is known which of the space's batches fit."""
    assert session.proposals is not None
    params = session.proposals.baseline
    if not _in_doubt(session, params):
        return
    began = False
    for batch in _smaller(session, params):
        smaller = {**params, BATCH: batch}
        price = session.model.price(smaller, session.plan.segment)
        if price.total_s > MOST_OF_BUDGET * session.plan.budget.total_s - _spent_s(session):
            break
        if not began:
            session.phase("probes", "how memory grows with the batch")
            began = True
        session.ask_and_run("probe", smaller, DEADLINE * price.total_s, "memory")
    session.notes += _answer(session, params)


def _in_doubt(session: Session, params: Params) -> bool:
    """Could a batch of the space not fit, for all that the baseline's own peak says?

    A peak grows by less than the batch does, because part of it does not depend on the batch at all: the baseline's,
    in proportion, is an upper bound.
    """
    batches = _batches(session)
    peaks = session.baseline.result.peak_mem_bytes if session.baseline else ()
    limit, own = session.memory.limit_bytes, int(params.get(BATCH) or 0)
    if not batches or not peaks or limit is None or own < 1 or max(batches) <= own:
        return False
    return max(peaks) * max(batches) / own > (1 - HEADROOM_FRAC) * limit


def _smaller(session: Session, params: Params) -> list[int]:
    """Batches that are sure to fit, the smallest first: it fixes the line best. An earlier part's are not run again."""
    own = int(params[BATCH] or 0)
    below = sorted({b for b in _batches(session) if b < own} or {own // 4, own // 2} - {0})
    finished = [r.result for r in session.ran if r.result.outcome is not Outcome.INTERRUPTED]
    ran = {r.params.get(BATCH) for r in finished if r.probe == "memory"}
    return [b for b in dict.fromkeys([*below[:1], *below[-1:]]) if b not in ran][: N_PROBES - len(ran)]


def _batches(session: Session) -> list[int]:
    return [b for b in session.study.domain.get(BATCH, ()) if type(b) is int]


def _spent_s(session: Session) -> float:
    return sum(r.result.took_s for r in session.ran if r.result.probe == "memory")


def _answer(session: Session, params: Params) -> list[str]:
    """What a rank needs, and the largest batch of the space that is safe."""
    line, limit = session.memory.line(params), session.memory.limit_bytes
    safe = session.memory.largest_safe(params, max(_batches(session)))
    if line is None or limit is None or safe is None:
        return []
    return [
        f"with your settings a rank needs {spell_size(line.base_bytes)}, and {spell_size(line.per_image_bytes)} an "
        f"image: up to {safe} a rank are safe in {spell_size(limit)}, {HEADROOM_FRAC:.0%} of it kept free"
    ]
