"""Which configurations are there, which are known already, and which are one and the same?"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from autotune.contract import Params, TrialResult, Value
from autotune.search.plan import Applied, Prepared

ENUMERABLE: Final = 2000
"""Up to this many combinations all canonical configurations are listed, so that `all were measured` can be known."""
NOT_RECORDED: Final = "not in the recording"
"""Why a replay cannot try a configuration."""
DRAWS: Final = 200
"""Random draws before a large domain counts as exhausted."""


def key_of(params: Params) -> str:
    """Equal for equal configurations; keeps True, 1, 1.0 and "1" apart."""
    return repr(sorted(params.items()))  # six times as fast as JSON, and asked for hundreds of times a trial


def changes_of(params: Params, baseline: Params) -> Params:
    """The part that differs from the baseline."""
    return {n: v for n, v in params.items() if n not in baseline or repr(v) != repr(baseline[n])}


class Proposals:
    """All configurations of a domain (that of `prepared`, or of an earlier part of the search), and what is known.

    With `only`, these are all that there are.

    Attributes:
        domain: knob -> values to choose from.
        queue: to be tried before the sampler is asked, in order.
        known: key -> number of the trial that ran it; None when it was skipped for its price.
    """

    def __init__(
        self,
        prepared: Prepared,
        domain: Mapping[str, tuple[Value, ...]],
        canonical: Callable[[Params], Params],
        seed: int,
        only: Sequence[Params] | None = None,
    ) -> None:
        self._canonical = canonical
        self._only = None if only is None else {key_of(params): params for params in only}
        self._rng = random.Random(seed)
        self.baseline = canonical(prepared.baseline)
        self.queue: deque[Params] = deque(dict(seed) for seed in prepared.seeds)
        self.known: dict[str, int | None] = {}
        self.narrow(domain)

    def narrow(self, domain: Mapping[str, tuple[Value, ...]]) -> None:
        """From now on choose from this domain: knobs that it lacks stay as the baseline has them."""
        self.domain = domain
        self._all: dict[str, Params] | None = None
        if self._only is not None:
            inside = {k: p for k, p in self._only.items() if all(self._holds(*knob) for knob in p.items())}
            self._all = inside
        elif math.prod(len(values) for values in self.domain.values()) <= ENUMERABLE:
            combinations = itertools.product(*self.domain.values())
            every = (self.complete(dict(zip(self.domain, values, strict=True))) for values in combinations)
            self._all = {key_of(params): params for params in every}

    def complete(self, chosen: Params) -> Params:
        """Choices over the domain -> the whole configuration in its one spelling."""
        return self._canonical({**self.baseline, **chosen})

    def every(self) -> dict[str, Params] | None:
        """Key -> configuration, of all there are; None when they are too many to list."""
        return self._all

    def exists(self, params: Params) -> bool:
        """May it be tried at all? In a replay only what was recorded."""
        return self._only is None or key_of(params) in self._only

    def exhausted(self) -> bool:
        """True when it is certain that nothing is left to try."""
        return self._all is not None and self._all.keys() <= self.known.keys()

    def unseen(self) -> Params | None:
        """A random configuration that is not known yet; None when there is (probably) none left."""
        if self._all is not None:
            left = [params for key, params in self._all.items() if key not in self.known]
            return self._rng.choice(left) if left else None
        for _ in range(DRAWS):
            params = self.complete({name: self._rng.choice(values) for name, values in self.domain.items()})
            if key_of(params) not in self.known:
                return params
        return None

    def add_effective(self, params: Params, result: TrialResult) -> bool:
        """Queue what a mismatched trial really ran, if the domain holds it and nobody has tried it.

        Returns:
            True when it was queued.
        """
        ran: Params = {name: result.effective.get(name, value) for name, value in params.items()}
        if any(not self._holds(name, value) for name, value in ran.items()):
            return False
        ran = self._canonical(ran)
        if key_of(ran) in self.known or any(key_of(ran) == key_of(self.complete(queued)) for queued in self.queue):
            return False
        self.queue.appendleft(ran)
        return True

    def _holds(self, name: str, value: Value) -> bool:
        """May the knob be set so? Knobs outside the domain stay as the baseline has them; None is inert."""
        if value is None:
            return True
        allowed = self.domain.get(name, (self.baseline.get(name),))
        return any(json.dumps(value) == json.dumps(choice) for choice in allowed)


def yolo_projection(
    params: Params,
    baseline: Params,
    canonical: Callable[[Params], Params],
    materialise: Callable[[Params], Applied],
) -> Params:
    """The part of a configuration that plain YOLO arguments can carry: what needs env or patches goes back."""
    kept = dict(params)
    for name, value in changes_of(params, baseline).items():
        alone = materialise({**baseline, name: value})
        if alone.patches or alone.env:
            kept[name] = baseline[name]
    return canonical(kept)
