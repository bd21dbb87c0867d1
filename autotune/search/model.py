"""How fast will a configuration be, what memory will it need, and how far is that to be believed?

The structured surrogate (SEARCH 5.3). One rank with a batch of b images needs for a step, in seconds,

    compute = exp(a) * ((b * C)**p + (exp(h) * L)**p)**(1/p)     C, L: products of the settings' factors, p near 2
    data    = exp(d) * b * D / workers**g                        g near 0.85; without workers it is waited for
    step    = (compute**q + data**q)**(1/q) + exchange           q near 6: the longer of the two, smoothly
    exchange = exp(e) * E                                        several ranks only
    memory  = (exp(m) + exp(k) * b * M) bytes

with log C = sum of the coefficients of what is set, and so on (effects.py says what is believed of them beforehand).
All parameters are fitted together to what trials report: seconds per image, the part of the step without waiting, the
wait where there are no workers, peaks of memory, and an out-of-memory as "at least the limit". The fit is the maximum a
posteriori by Levenberg-Marquardt (Nocedal & Wright, Numerical Optimization, 2006, 10.3) with Huber's weights against
outliers; its covariance is Laplace's. What the formula cannot say is left to a Gaussian process on the residuals of
log seconds per image, whose covariance falls with the number of settings that differ (Rasmussen & Williams, 2006, 2.2);
its size is estimated from the residuals themselves, so that a wrong formula is trusted less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from autotune.contract import Params
from autotune.search.effects import BATCH, THREADS, WORKERS, Array, Encoding

Rows = np.ndarray[Any, np.dtype[np.int64]]

A, H, P, D, G, Q, E, M, K, BUSY = range(10)
"""Places of the formula's own parameters: logs, but for g (workers' exponent) and BUSY (cost of crowded cores)."""
N_OWN: Final = 10
NOISE_FRAC: Final = 0.02
"""Run-to-run noise of log seconds per image before repeats say better."""
PART_SD: Final = 0.04
"""Of the log of a part of the step, beyond that noise (SEARCH 2.1 draws 3 %)."""
MEMORY_SD: Final = 0.02
PRUNED_SD: Final = 0.04
"""Of a trial that racing stopped: fewer steps."""
MISFIT: Final = (0.01, 0.02, 0.04, 0.08, 0.16)
"""Grid of the residual process's standard deviation."""
LENGTH: Final = 3.0
"""Settings that differ until the covariance of two residuals has fallen to 1/e."""
HUBER: Final = 2.5
ITERATIONS: Final = 25
EPSILON: Final = 1e-4
BEYOND: Final = 1.03
"""An out-of-memory counts as a peak of at least this many limits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one trial taught.

    Attributes:
        params: its configuration.
        image_s: seconds per image of all ranks together; None where it measured none.
        noise_frac: standard deviation of its logarithm, from run to run and within the run.
        wait_frac: share of the step spent waiting for data; None: unknown.
        mem_bytes: peak of the worst rank; None: unknown.
        oom: it ran out of memory.
    """

    params: Params
    image_s: float | None = None
    noise_frac: float = NOISE_FRAC
    wait_frac: float | None = None
    mem_bytes: float | None = None
    oom: bool = False


@dataclass(frozen=True, slots=True)
class Forecast:
    """Predictions for n configurations; logs are natural, arrays (n,).

    Attributes:
        log_image_s: mean of the log of seconds per image.
        sd: its standard deviation, the noise of a run left out.
        mem_bytes: peak of a rank; its log has standard deviation mem_sd.
        mem_sd: see there.
        data_share: of the step that the loader alone would take; above 1 it decides.
    """

    log_image_s: Array
    sd: Array
    mem_bytes: Array
    mem_sd: Array
    data_share: Array


@dataclass(frozen=True, slots=True)
class Setting:
    """What the formula must know beside the configuration."""

    n_ranks: int = 1
    on_cpu: bool = False
    n_cores: float = 1.0
    """That a rank may use."""
    limit_bytes: float | None = None
    """Memory of one rank."""


class Surrogate:
    """The fitted model.

    Args:
        encoding: of the domain.
        setting: of the job.
        observations: of all trials so far; at least one with image_s.

    Attributes:
        misfit_frac: standard deviation of what the formula cannot say, as a share of the time.
        noise_frac: run-to-run noise that the repeats show, or NOISE_FRAC.
    """

    def __init__(self, encoding: Encoding, setting: Setting, observations: Sequence[Observation]) -> None:
        self.encoding, self.setting = encoding, setting
        self._timed = [o for o in observations if o.image_s]
        if not self._timed:
            raise ValueError("nothing was measured")
        self._rows = encoding.rows([o.params for o in self._timed])
        self._y = np.array([math.log(o.image_s or 1.0) for o in self._timed])
        self._noise = np.array([o.noise_frac for o in self._timed])
        self._sized = [o for o in observations if o.mem_bytes or (o.oom and setting.limit_bytes)]
        self._sized_rows = encoding.rows([o.params for o in self._sized])
        self._prior()
        self.misfit_frac = MISFIT[1]
        for _ in range(2):
            self.theta, self.covariance = self._fit()
            self.misfit_frac = self._misfit()
        self._residual_process()

    def _prior(self) -> None:
        """Means and deviations of all parameters; the scales come from the first trial, the user's own settings."""
        first, s = self._timed[0], self.setting
        batch = max(float(first.params.get(BATCH) or 16), 1.0)
        y0 = math.log((first.image_s or 1.0) * s.n_ranks)  # seconds per image of one rank
        wait = min(max(first.wait_frac or 0.0, 0.0), 0.95)
        compute = y0 + math.log1p(-wait)
        workers = float(first.params.get(WORKERS) or 0)
        mean, sd = np.zeros(N_OWN), np.ones(N_OWN)
        head = 8.0 if not s.on_cpu else 2.0
        mean[H], sd[H] = math.log(head), 1.0
        mean[A], sd[A] = compute - math.log(math.hypot(batch, head) / batch), 1.0
        mean[P], sd[P] = math.log(2.0), 0.3
        mean[G], sd[G] = 0.85, 0.15
        mean[D], sd[D] = y0 + math.log(max(wait, 0.35)) + 0.85 * math.log(max(workers, 1.0)), 1.0
        mean[Q], sd[Q] = math.log(6.0), 0.3
        mean[E], sd[E] = y0 + math.log(batch) + math.log(0.05), 1.2
        mean[BUSY], sd[BUSY] = 0.2, 0.2
        sizes = [(o.mem_bytes, float(o.params.get(BATCH) or 16)) for o in self._sized if o.mem_bytes]
        level, at = sizes[0] if sizes else (s.limit_bytes or 1e9, 16.0)
        mean[M], sd[M] = math.log(0.4 * (level or 1e9)), 0.8
        mean[K], sd[K] = math.log(0.6 * (level or 1e9) / at), 0.8
        self._mean = np.concatenate([mean, self.encoding.mean])
        self._sd = np.concatenate([sd, self.encoding.sd])

    def _world(self, rows: Rows) -> _World:
        """What the formula needs of these configurations, once for many parameters."""
        encoding, s = self.encoding, self.setting
        workers = encoding.numbers(rows, WORKERS, float(self._timed[0].params.get(WORKERS) or 0))
        threads = encoding.numbers(rows, THREADS, 1.0)
        busy = np.maximum(0.0, threads + workers - s.n_cores) / max(s.n_cores, 1.0) if s.on_cpu else np.zeros(len(rows))
        return _World(
            encoding.features(rows),
            encoding.numbers(rows, BATCH, float(self._timed[0].params.get(BATCH) or 16)),
            workers,
            busy,
        )

    def _times(self, theta: Array, world: _World) -> tuple[Array, Array, Array]:
        """(k, n) seconds of a step for k parameter vectors: computing and exchanging, loading, and the whole."""
        own, coefficients = theta[:, :N_OWN], theta[:, N_OWN:]
        f = world.features
        compute, launch, data = (coefficients @ f[r].T for r in ("compute", "launch", "data"))
        p = np.exp(own[:, [P]])
        x = np.log(world.batch)[None] + compute
        step = own[:, [A]] + np.logaddexp(p * x, p * (own[:, [H]] + launch)) / p + own[:, [BUSY]] * world.busy[None]
        load = own[:, [D]] + np.log(world.batch)[None] + data
        load = load - own[:, [G]] * np.log(np.maximum(world.workers, 1.0))[None]
        computing = np.exp(step)
        if self.setting.n_ranks > 1:
            computing = computing + np.exp(own[:, [E]] + coefficients @ f["exchange"].T)
        q = np.exp(own[:, [Q]])
        loading = np.exp(load)
        together = np.exp(np.logaddexp(q * np.log(computing), q * load) / q)
        whole = np.where(world.workers[None] > 0, together, computing + loading)
        return computing, loading, whole

    def _log_image_s(self, theta: Array, world: _World) -> Array:
        return np.log(self._times(theta, world)[2] / (world.batch[None] * self.setting.n_ranks))

    def _log_memory(self, theta: Array, world: _World) -> Array:
        own = theta[:, :N_OWN]
        per_image = own[:, [K]] + np.log(world.batch)[None] + theta[:, N_OWN:] @ world.features["memory"].T
        return np.logaddexp(own[:, [M]], per_image)

    def _fit(self) -> tuple[Array, Array]:
        """Maximum a posteriori and Laplace covariance."""
        timed, sized = self._world(self._rows), self._world(self._sized_rows)
        noise = np.sqrt(self._noise**2 + self.misfit_frac**2)
        waits = [o.wait_frac for o in self._timed]
        known = np.array([w is not None and w < 0.9 for w in waits])
        alone = np.array([w is not None and w > 0.02 and not o.params.get(WORKERS) for w, o in zip(waits, self._timed)])
        wait = np.array([min(max(w or 0.0, 1e-3), 0.999) for w in waits])
        part_sd = np.sqrt(noise**2 + PART_SD**2)
        per_step = self._y + np.log(timed.batch * self.setting.n_ranks)
        sizes = np.array([math.log(o.mem_bytes or 1.0) for o in self._sized])
        oom = np.array([o.oom for o in self._sized], dtype=bool)
        wall = math.log(BEYOND * (self.setting.limit_bytes or 1.0))

        def residuals(theta: Array) -> Array:
            computing, loading, whole = self._times(theta, timed)
            parts = [
                (np.log(whole) - per_step[None]) / noise,
                np.where(known, (np.log(computing) - per_step - np.log1p(-wait)) / part_sd, 0.0),
                np.where(alone, (np.log(loading) - per_step - np.log(wait)) / part_sd, 0.0),
            ]
            if len(sizes):
                memory = self._log_memory(theta, sized)
                short = np.minimum(memory - wall, 0.0) / MEMORY_SD
                parts.append(np.where(oom, short, (memory - sizes) / MEMORY_SD))
            return np.concatenate(parts, axis=1)

        return maximise(residuals, self._mean, self._sd)

    def _misfit(self) -> float:
        """The deviation on MISFIT that makes the residuals likeliest, given the noise and the fit's own slack."""
        world = self._world(self._rows)
        error = self._y - self._log_image_s(self.theta[None], world)[0]
        similar = similarity(self._rows, self._rows)
        n = len(error)
        # A fit with many parameters leaves small residuals: they say little until there are more trials than that.
        prior_weight = 4.0
        best, best_score = MISFIT[0], -math.inf
        for r in MISFIT:
            covariance = r * r * similar + np.diag(self._noise**2)
            sign, logdet = np.linalg.slogdet(covariance)
            score = -0.5 * (error @ np.linalg.solve(covariance, error) + logdet)
            score -= 0.5 * prior_weight * (math.log(r / 0.03)) ** 2
            if sign > 0 and score > best_score:
                best, best_score = r, float(score)
        return best if n > 2 else MISFIT[1]

    def _residual_process(self) -> None:
        world = self._world(self._rows)
        self._error = self._y - self._log_image_s(self.theta[None], world)[0]
        covariance = self.misfit_frac**2 * similarity(self._rows, self._rows) + np.diag(self._noise**2)
        self._inverse = np.linalg.inv(covariance)

    def forecast(self, configurations: Sequence[Params]) -> Forecast:
        """Predictions, with what the formula, its parameters and the residuals leave open."""
        return self.forecast_rows(self.encoding.rows(configurations))

    def forecast_rows(self, rows: Rows) -> Forecast:
        """The same for rows of the encoding."""
        world = self._world(rows)
        at = self.theta[None]
        mean = self._log_image_s(at, world)[0]
        slopes = jacobian(lambda theta: self._log_image_s(theta, world), self.theta)
        variance = np.einsum("ni,ij,nj->n", slopes, self.covariance, slopes)
        cross = self.misfit_frac**2 * similarity(rows, self._rows)
        mean = mean + cross @ (self._inverse @ self._error)
        variance = variance + np.maximum(self.misfit_frac**2 - np.einsum("ni,ij,nj->n", cross, self._inverse, cross), 0)
        memory = self._log_memory(at, world)[0]
        slopes = jacobian(lambda theta: self._log_memory(theta, world), self.theta)
        mem_sd = np.sqrt(np.einsum("ni,ij,nj->n", slopes, self.covariance, slopes) + MEMORY_SD**2)
        computing, loading, _ = self._times(at, world)
        return Forecast(mean, np.sqrt(variance), np.exp(memory), mem_sd, loading[0] / computing[0])

    def draw(self, rng: np.random.Generator, n: int) -> Array:
        """(n, parameters) samples of the parameters (Thompson's sampling)."""
        root = np.linalg.cholesky(self.covariance + 1e-10 * np.eye(len(self.theta)))
        out: Array = self.theta[None] + rng.standard_normal((n, len(self.theta))) @ root.T
        return out

    def by_formula(self, thetas: Array, rows: Rows) -> tuple[Array, Array]:
        """(k, rows) log seconds per image and (rows,) log bytes, for k parameter vectors and without the residuals."""
        world = self._world(rows)
        return self._log_image_s(thetas, world), self._log_memory(self.theta[None], world)[0]

    @property
    def knows_memory(self) -> bool:
        """True where a peak was measured."""
        return any(o.mem_bytes for o in self._sized)

    def effects(self) -> dict[str, tuple[float, float]]:
        """`knob=value, resource` -> posterior mean and deviation of its log factor, for those that data have moved."""
        sd = np.sqrt(np.diag(self.covariance))[N_OWN:]
        return {
            f"{name}={value}, {resource}": (float(self.theta[N_OWN + i]), float(sd[i]))
            for i, (name, value, resource) in enumerate(self.encoding.labels)
            if sd[i] < 0.9 * self._sd[N_OWN + i]
        }


@dataclass(frozen=True, slots=True)
class _World:
    """Configurations as the formula sees them."""

    features: dict[Any, Array]
    batch: Array
    workers: Array
    busy: Array


def similarity(one: Rows, other: Rows) -> Array:
    """(n, m) correlation of the residuals of two configurations: exp(-settings that differ / LENGTH)."""
    out: Array = np.exp(-(one[:, None, :] != other[None, :, :]).sum(axis=2) / LENGTH)
    return out


def jacobian(function: Callable[[Array], Array], theta: Array) -> Array:
    """(n, parameters) forward differences of function((k, parameters)) -> (k, n), all in one call."""
    shifted = np.concatenate([theta[None], theta[None] + EPSILON * np.eye(len(theta))])
    values = function(shifted)
    out: Array = ((values[1:] - values[:1]) / EPSILON).T
    return out


def maximise(residuals: Callable[[Array], Array], mean: Array, sd: Array) -> tuple[Array, Array]:
    """Levenberg-Marquardt on the data's residuals and the prior's, from the prior's mean.

    Args:
        residuals: (k, parameters) -> (k, n), each divided by its standard deviation.
        mean: of the Gaussian prior.
        sd: of the Gaussian prior.

    Returns:
        The maximum and the inverse of the Gauss-Newton curvature there.
    """
    precision = np.diag(1.0 / sd**2)
    theta, damping = mean.copy(), 1e-2

    def cost(theta: Array) -> float:
        r = np.abs(residuals(theta[None])[0])
        huber = np.where(r <= HUBER, 0.5 * r**2, HUBER * (r - 0.5 * HUBER))
        return float(huber.sum() + 0.5 * (((theta - mean) / sd) ** 2).sum())

    now = cost(theta)
    curvature = precision
    for _ in range(ITERATIONS):
        r = residuals(theta[None])[0]
        slopes = jacobian(residuals, theta)
        weight = np.where(np.abs(r) <= HUBER, 1.0, HUBER / np.maximum(np.abs(r), 1e-12))
        curvature = slopes.T @ (weight[:, None] * slopes) + precision
        gradient = slopes.T @ (weight * r) + (theta - mean) / sd**2
        moved = False
        while damping < 1e6:
            step = np.linalg.solve(curvature + damping * np.diag(np.diag(curvature)), gradient)
            then = cost(theta - step)
            if then < now:
                theta, gain, now = theta - step, now - then, then
                damping, moved = max(damping / 5, 1e-6), True
                break
            damping *= 5
        if not moved or gain < 1e-3:
            break
    return theta, np.linalg.inv(curvature)
