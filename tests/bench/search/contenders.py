"""Who takes part in the benchmark? Our strategies, Optuna's TPE as it ships, and a peer's published algorithm."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from studies import Contender

from autotune.contract import Params
from autotune.search.proposals import key_of
from autotune.search.samplers import SAMPLERS
from autotune.search.situation import Proposal, Situation
from autotune.search.strategies import STRATEGIES, Strategy

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

PLATEAU_FRAC = 0.05
"""DeepSpeed's METRIC_PERCENT_DIFF_CONST: a batch that gains less ends the walk (PEERS 5)."""


def _stock_tpe(seed: int) -> BaseSampler:
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed)


def _batch_walk(s: Situation) -> Proposal:
    """DeepSpeed's autotuner, from its description (PEERS 5): the batch is doubled until it runs out of memory or gains
    less than 5 %; then the other settings' combinations at that batch, in the order of the file.
    """
    proposals, batches = s.proposals, sorted(b for b in s.proposals.domain.get("batch_per_gpu", ()) if b)
    tried = {key_of(r.result.params): r for r in s.ran if r.result.role in ("trial", "baseline")}

    def at(batch: int) -> Params:
        return proposals.complete({"batch_per_gpu": batch})

    best: tuple[float, int] | None = None
    batch = int(batches[0]) if batches else 0
    while batch and batch <= batches[-1]:
        near = min(batches, key=lambda b: (abs(b - batch), b))
        ran = tried.get(key_of(at(near)))
        if ran is None and key_of(at(near)) not in proposals.known:
            return Proposal(params=at(near))
        value = ran.value if ran and ran.result.outcome.measured else None
        if value is None or (best is not None and value > best[0] * (1 - PLATEAU_FRAC)):
            break
        best, batch = (value, near), 2 * near
    others = {n: vs for n, vs in proposals.domain.items() if n != "batch_per_gpu"}
    fixed = {"batch_per_gpu": best[1]} if best else {}
    for values in itertools.islice(itertools.product(*others.values()), 100_000):
        params = proposals.complete({**dict(zip(others, values, strict=True)), **fixed})
        if key_of(params) not in proposals.known:
            return Proposal(params=params)
    return Proposal()


SAMPLERS["tpe_stock"] = _stock_tpe
STRATEGIES["tpe_stock"] = Strategy("tpe_stock")
STRATEGIES["batch_walk"] = Strategy("random", _batch_walk)

CONTENDERS: dict[str, Contender] = {
    "structured": Contender(strategy="structured"),
    "simple": Contender(strategy="simple"),
    "tpe": Contender(strategy="tpe"),
    "tpe_stock": Contender(strategy="tpe_stock", expert=False, vetoes=False),
    "gp": Contender(strategy="gp"),
    "random": Contender(strategy="random", expert=False, vetoes=False),
    "batch_walk": Contender(strategy="batch_walk", expert=False, vetoes=False),
}
"""tpe_stock: Optuna's sampler as it ships, told of failures by our controller; batch_walk: the peer."""
