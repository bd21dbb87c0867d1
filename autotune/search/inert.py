"""Which families of settings cannot matter now, by what the fastest trials say their steps are made of?

A loader that nobody waits for is not made faster, and communication that is hidden is not hidden better. Such a family
stays as the best has it until the fastest trials wait again: a faster step may bring the loader to light (SEARCH 5.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from autotune.contract import Outcome, Params
from autotune.search.ran import Ran
from autotune.space.knobs import COMMUNICATION

LOADER: Final = frozenset({"workers", "prefetch_factor", "cache", "pin_memory"})
NEAR_FRAC: Final = 0.10
"""Trials within so much of the best speak for it."""
WAIT_FRAC: Final = 0.03
EXCHANGE_FRAC: Final = 0.02
MIN_TRIALS: Final = 3


def frozen(ran: Sequence[Ran], exchange: dict[int, float], domain: Sequence[str]) -> tuple[Params, dict[str, str]]:
    """What stays as the best trial has it, and why.

    Args:
        ran: all trials so far.
        exchange: trial number -> share of its step in which ranks exchange what nothing hides, where it is known.
        domain: names of the knobs that are searched.

    Returns:
        Knob -> the best trial's value, and family (`loader`, `communication`) -> the reason, in words.
    """
    known = [r for r in ran if r.result.role in ("baseline", "trial", "sentinel") and r.value is not None]
    known = [r for r in known if r.result.outcome in (Outcome.OK, Outcome.UNSTABLE)]
    if not known:
        return {}, {}
    best = min(known, key=lambda r: r.value or 0.0)
    near = [r for r in known if (r.value or 0.0) <= (best.value or 0.0) * (1 + NEAR_FRAC)]
    fixed: Params = {}
    why: dict[str, str] = {}
    waits = [r.result.wait_frac for r in near]
    if (
        len(near) >= MIN_TRIALS
        and all(w is not None and w < WAIT_FRAC for w in waits)
        and best.result.params.get("workers")
    ):
        fixed |= {name: best.result.params.get(name) for name in domain if name in LOADER}
        most = max(w for w in waits if w is not None)
        why["loader"] = f"the {len(near)} fastest trials wait for data {most:.1%} of their step at most"
    shares = [exchange.get(r.number) for r in near]
    if len(near) >= MIN_TRIALS and all(e is not None and e < EXCHANGE_FRAC for e in shares):
        fixed |= {name: best.result.params.get(name) for name in domain if name in COMMUNICATION}
        most = max(e for e in shares if e is not None)
        why["communication"] = f"in the {len(near)} fastest trials {most:.1%} of the step is communication at most"
    return {name: value for name, value in fixed.items() if value is not None}, why
