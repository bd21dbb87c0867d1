"""Which strategies are there, what does each propose next, and can it run here?"""

from __future__ import annotations

import difflib
import importlib.util
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from autotune.contract import Value
from autotune.errors import InputError, MachineError
from autotune.search.proposals import key_of
from autotune.search.ran import Ran
from autotune.search.situation import Proposal, Situation

Propose = Callable[[Situation], Proposal]
"""From where the search stands, what to try next."""


def _sampler_chooses(s: Situation) -> Proposal:
    return Proposal()


def _structured(s: Situation) -> Proposal:
    """The structured surrogate: what a step is made of, fitted to what trials report (model.py, guided.py)."""
    from autotune.search.guided import propose

    return propose(s)


def _descend(s: Situation) -> Proposal:
    """Coordinate descent from the fastest so far: one setting changed, the nearest values first, knob after knob.

    The space's seeds come before (an expert's start): SEARCH 2.3's yardstick, better there than any stock sampler. It
    reads nothing but the trials, so a resumed search goes on where it stopped. At a local optimum, where every single
    change is known, the sampler chooses.
    """
    ran, proposals = s.ran, s.proposals
    best = min((r for r in ran if r.value is not None and r.result.outcome.measured), key=_value, default=None)
    if best is None:
        return Proposal()
    here, knobs = best.result.params, [name for name, values in proposals.domain.items() if len(values) > 1]
    if not knobs:
        return Proposal()
    # After a step the next knob is looked at, not the first one again: else late knobs would never have their turn.
    last = next((r.result.params for r in reversed(ran) if r.result.role == "trial"), here)
    moved = [i for i, name in enumerate(knobs) if not _same(last.get(name), here.get(name))]
    start = moved[-1] if moved else 0
    for name in (*knobs[start:], *knobs[:start]):
        for value in _nearest_first(proposals.domain[name], here.get(name)):
            params = proposals.complete({**here, name: value})
            if key_of(params) not in proposals.known:
                return Proposal(params=params)
    return Proposal()


def _walk(s: Situation) -> Proposal:
    """Every combination in the order of the space's file, the last knob first."""
    proposals = s.proposals
    for values in itertools.product(*proposals.domain.values()):
        params = proposals.complete(dict(zip(proposals.domain, values, strict=True)))
        if key_of(params) not in proposals.known:
            return Proposal(params=params)
    return Proposal()


@dataclass(frozen=True, slots=True)
class Strategy:
    """A row of STRATEGIES."""

    sampler: str
    """Key of samplers.SAMPLERS: it fills in what is not proposed, and goes on where nothing is."""
    propose: Propose = _sampler_chooses
    needs: tuple[str, ...] = ()
    """Modules that are imported late: GPSampler itself would only miss them at its first model, trials later."""


STRATEGIES: Final[dict[str, Strategy]] = {
    "structured": Strategy("tpe", _structured),
    "tpe": Strategy("tpe"),
    "random": Strategy("random"),
    "gp": Strategy("gp", needs=("torch", "scipy")),
    "simple": Strategy("tpe", _descend),
    "grid": Strategy("random", _walk),
}
"""--strategy -> what it does."""


def check_strategy(name: str) -> str:
    """The name, if that strategy exists and everything it imports is installed.

    Raises:
        InputError: no such strategy.
        MachineError: a module it needs is missing.
    """
    if name not in STRATEGIES:
        near = difflib.get_close_matches(name, STRATEGIES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"one of: {', '.join(STRATEGIES)}"
        raise InputError(f"unknown strategy '{name}'", hint)
    missing = [module for module in STRATEGIES[name].needs if importlib.util.find_spec(module) is None]
    if missing:
        raise MachineError(
            f"strategy {name} needs {' and '.join(missing)}, not installed", f"pip install {' '.join(missing)}"
        )
    return name


def _value(ran: Ran) -> float:
    assert ran.value is not None
    return ran.value * ran.doubt


def _nearest_first(values: Sequence[Value], now: Value) -> list[Value]:
    """The other values; of numbers those beside the present one first, in the order that the space gives."""
    at = next((i for i, v in enumerate(values) if _same(v, now)), 0)
    others = [i for i, v in enumerate(values) if not _same(v, now)]
    return [values[i] for i in sorted(others, key=lambda i: (abs(i - at), -i))]


def _same(a: Value, b: Value) -> bool:
    """As in a file: True, 1 and 1.0 are three values."""
    return json.dumps(a) == json.dumps(b)
