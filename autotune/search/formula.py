"""What is a step made of, and what does it keep in memory? The surrogate's formula and its slopes.

One rank with a batch of b images needs for a step, in seconds,

    compute  = exp(a) * ((b * C)**p + (exp(h) * L)**p)**(1/p)    C, L: products of the settings' factors, p near 2
    data     = exp(d) * b * D / workers**g                       g near 0.85; without workers it is waited for
    exchange = last + positive part of (all - last - hidden)     several ranks only
      all    = exp(e) * E * (1 + exp(l) * buckets)               of all gradients; l: latency of one all-reduce
      last   = exp(e) * E * (share of one bucket + exp(l))       nothing is left to hide it behind
      hidden = exp(v) * V * compute                              behind the backward pass
    step     = ((compute + exchange)**q + data**q)**(1/q)        q near 6: the longer of the two, smoothly
    memory   = exp(m) * N + exp(k) * b * M                       bytes

with log C the sum of the compute coefficients of what is set, and so on (effects.py). On a CPU, where loaders and step
share the cores, compute grows by exp(busy * share of cores too many). After SEARCH 5.3; that gradients are exchanged in
buckets while the backward pass goes on: Li et al., PyTorch Distributed, VLDB 2020, 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from autotune.search.effects import BATCH, BUCKET, RESOURCES, THREADS, WORKERS, Array, Encoding, Integers, Resource

A, H, P, D, G, Q, E, M, K, BUSY, L, V = range(12)
"""Places of the formula's own parameters: logs, but for g and busy."""
N_OWN: Final = 12
WHOLE, COMPUTING, LOADING, MEMORY, EXCHANGE = range(5)
"""Places of the outputs: logs of step, step without data, data (seconds), memory (bytes), and of the exchange that
nothing hides (seconds; of no meaning with one rank)."""
EPSILON: Final = 1e-4
SOFT: Final = 0.1
"""Share of an exchange over which "hidden" turns into "exposed": nothing hides perfectly."""
BUCKET_MIB: Final = 25.0
"""Of DDP, where none is set."""
UNKNOWN_BUCKETS: Final = (0.2, 4.0)
"""Share of the last bucket, and their number, where nobody knows how many bytes the gradients have."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What the formula must know beside the configuration."""

    n_ranks: int = 1
    on_cpu: bool = False
    n_cores: float = 1.0
    """That a rank may use."""
    limit_bytes: float | None = None
    """Memory of one rank."""
    batch: float = 16.0
    """Of the user's own settings, where the domain has no batch."""
    workers: float = 0.0
    gradient_bytes: float | None = None


@dataclass(frozen=True, slots=True)
class Configurations:
    """Configurations as the formula sees them, (n,) and (n, coefficients)."""

    features: Mapping[Resource, Array]
    log_batch: Array
    log_workers: Array
    has_workers: np.ndarray[Any, np.dtype[np.bool_]]
    busy: Array
    last_frac: Array
    """Share of the gradients in the last bucket."""
    n_buckets: Array

    @property
    def n(self) -> int:
        """How many."""
        return len(self.log_batch)


class Formula:
    """The formula for one domain and one job.

    Args:
        encoding: of the domain.
        setting: of the job.
    """

    def __init__(self, encoding: Encoding, setting: Setting) -> None:
        self.encoding, self.setting = encoding, setting

    def see(self, rows: Integers) -> Configurations:
        """Rows of the encoding, once for many parameters."""
        s = self.setting
        workers = self.encoding.numbers(rows, WORKERS, s.workers)
        threads = self.encoding.numbers(rows, THREADS, 1.0)
        busy = np.maximum(0.0, threads + workers - s.n_cores) / max(s.n_cores, 1.0) if s.on_cpu else 0.0 * workers
        log_batch = np.log(self.encoding.numbers(rows, BATCH, s.batch))
        features = self.encoding.features(rows)
        log_workers = np.log(np.maximum(workers, 1.0))
        return Configurations(features, log_batch, log_workers, workers > 0, busy, *self._buckets(rows))

    def _buckets(self, rows: Integers) -> tuple[Array, Array]:
        """(n,) share of the gradients in the last bucket, and (n,) how many buckets there are."""
        total = self.setting.gradient_bytes
        if not total:
            return np.full(len(rows), UNKNOWN_BUCKETS[0]), np.full(len(rows), UNKNOWN_BUCKETS[1])
        size = self.encoding.numbers(rows, BUCKET, BUCKET_MIB) * 2**20
        return np.minimum(1.0, size / total), np.maximum(1.0, np.ceil(total / size))

    def outputs(self, thetas: Array, x: Configurations) -> Array:
        """(outputs, k, n) for k parameter vectors."""
        factors = [thetas[:, N_OWN + self.encoding.columns[r]] @ x.features[r].T for r in RESOURCES]
        return self._outputs(thetas[:, :N_OWN], np.array(factors), x)

    def slopes(self, theta: Array, x: Configurations) -> tuple[Array, Array]:
        """(outputs, n) and their derivatives, (outputs, n, parameters).

        A coefficient acts through the log factor of its resource only, so that one difference for each resource stands
        for all of them.
        """
        factors = np.array([x.features[r] @ theta[N_OWN + self.encoding.columns[r]] for r in RESOURCES])
        n_shifts = N_OWN + len(RESOURCES)
        own = np.repeat(theta[None, :N_OWN], 1 + n_shifts, axis=0)
        many = np.repeat(factors[:, None, :], 1 + n_shifts, axis=1)
        own[1 : N_OWN + 1] += EPSILON * np.eye(N_OWN)
        for i in range(len(RESOURCES)):
            many[i, 1 + N_OWN + i] += EPSILON
        values = self._outputs(own, many, x)
        change = (values[:, 1:] - values[:, :1]) / EPSILON
        out = np.zeros((len(values), x.n, len(theta)))
        out[:, :, :N_OWN] = change[:, :N_OWN].transpose(0, 2, 1)
        for i, r in enumerate(RESOURCES):
            out[:, :, N_OWN + self.encoding.columns[r]] = change[:, N_OWN + i, :, None] * x.features[r][None]
        return values[:, 0], out

    def _outputs(self, own: Array, factors: Array, x: Configurations) -> Array:
        """The formula; own (k, N_OWN), factors (resources, k, n)."""
        compute, launch, data, exchange, memory, hide, kept = factors
        p, q = np.exp(own[:, [P]]), np.exp(own[:, [Q]])
        computing = own[:, [A]] + np.logaddexp(p * (x.log_batch + compute), p * (own[:, [H]] + launch)) / p
        computing = computing + own[:, [BUSY]] * x.busy
        exchanging = own[:, [E]] + exchange
        if self.setting.n_ranks > 1:
            whole = np.exp(exchanging)
            alone = whole * np.exp(own[:, [L]])
            every, last = whole + x.n_buckets * alone, whole * x.last_frac + alone
            over = every - last - np.exp(own[:, [V]] + hide + computing)
            exchanging = np.log(last + 0.5 * (over + np.sqrt(over * over + (SOFT * every) ** 2)))
            computing = np.logaddexp(computing, exchanging)
        loading = own[:, [D]] + x.log_batch + data - own[:, [G]] * x.log_workers
        q = np.where(x.has_workers, q, 1.0)
        whole = np.logaddexp(q * computing, q * loading) / q
        held = np.logaddexp(own[:, [M]] + kept, own[:, [K]] + x.log_batch + memory)
        return np.array([whole, computing, loading, held, exchanging])
