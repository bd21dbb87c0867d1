"""How fast will a configuration be, what memory will it need, and how far is that to be believed?

The structured surrogate: the formula of formula.py with the beliefs of effects.py, fitted to what trials report:
seconds per image, the part of the step without waiting, the wait where there are no loader workers, the exchange of
ranks, peaks of memory, and an out-of-memory as "at least the limit". The fit is the maximum a posteriori
(least_squares.py) with Laplace's covariance. What the formula cannot say is left to a Gaussian process on the residuals
of log seconds per image (misfit.py), so that a wrong formula is trusted less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from autotune.contract import Params
from autotune.search.effects import BATCH, COMPILED_HIDES, WORKERS, WRAP, Array, Encoding, Integers
from autotune.search.formula import (
    BUSY,
    COMPUTING,
    EXCHANGE,
    LOADING,
    MEMORY,
    N_OWN,
    WHOLE,
    A,
    Configurations,
    D,
    E,
    Formula,
    G,
    H,
    K,
    L,
    M,
    P,
    Q,
    Setting,
    V,
)
from autotune.search.least_squares import maximise
from autotune.search.misfit import MISFIT, TRUSTS, counts, likeliest, quadratic, similarity
from autotune.search.observations import Observation

PART_SD: Final = 0.04
"""Of the log of a part of the step, beyond that noise (SEARCH 2.1 draws 3 %)."""
MEMORY_SD: Final = 0.02
OVERDRAW: Final = 8
"""Samples that are weighed for each one that is kept."""
DOUBT: Final = 3.0
"""Log likelihood by which Laplace's approximation may be off before a sample counts less."""
BEYOND: Final = 1.03
"""An out-of-memory counts as a peak of at least this many limits."""
EXCHANGE_SD: Final = 0.2
SHARE_SD: Final = 0.04
"""Of the log of the exchange, and of its share of the step: a difference of two measurements."""
LEAST_EXCHANGE: Final = 0.02
MOST_FITS: Final = 5
LEAST_SD: Final = 1e-4
LEAST_WAIT: Final = 0.02
"""A smaller share of waiting says nothing of the loader."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Predictions for n configurations; logs are natural, arrays (n,).

    Attributes:
        log_image_s: mean of the log of seconds per image of all ranks.
        sd: its standard deviation, the noise of a run left out.
        log_mem_bytes: of the peak of a rank.
        mem_sd: its standard deviation.
    """

    log_image_s: Array
    sd: Array
    log_mem_bytes: Array
    mem_sd: Array


class Surrogate:
    """The fitted model.

    Args:
        encoding: of the domain.
        setting: of the job.
        observations: of all trials so far; the first with image_s is that of the user's own settings.

    Attributes:
        misfit_frac: standard deviation of what the formula cannot say, as a share of the time.
        wider: factor on the deviations of the beliefs that the data ask for.
        trust: share of their means that the data leave.
        knows_memory: a peak was measured.

    Raises:
        ValueError: nothing was measured.
    """

    def __init__(self, encoding: Encoding, setting: Setting, observations: Sequence[Observation]) -> None:
        self._timed = [o for o in observations if o.image_s]
        if not self._timed:
            raise ValueError("nothing was measured")
        first = self._timed[0].params
        batch, workers = max(float(first.get(BATCH) or 16), 1.0), float(first.get(WORKERS) or 0)
        self.setting = replace(setting, batch=batch, workers=workers)
        self.encoding, self.formula = encoding, Formula(encoding, self.setting)
        self._y = np.array([math.log(o.image_s or 1.0) for o in self._timed])
        self._noise = np.array([o.noise_frac for o in self._timed])
        self._sized = [o for o in observations if o.mem_bytes or (o.oom and setting.limit_bytes)]
        self.knows_memory = any(o.mem_bytes for o in self._sized)
        self._rows = encoding.rows([o.params for o in self._timed])
        self._x, self._x_sized = self.formula.see(self._rows), self.formula.see(encoding.rows(_params(self._sized)))
        self._counts = counts(encoding.names)
        self._similar = similarity(self._rows, self._rows, self._counts)
        self._mean, self._sd = self._prior()
        self.trust, self.misfit_frac, self.wider, self.theta = 1.0, MISFIT[1], 1.0, self._mean
        for _ in range(MOST_FITS):
            believed = self.trust, self.wider, self.misfit_frac
            self.theta, self._covariance = self._fit()
            self._error = self._y - self._per_image(self.formula.outputs(self.theta[None], self._x)[WHOLE], self._x)[0]
            self.trust, self.wider, self.misfit_frac = self._likeliest()
            if (self.trust, self.wider, self.misfit_frac) == believed:
                break
        else:  # they swing: the parameters are those of the last that the fit has seen
            self.trust, self.wider, self.misfit_frac = believed
        covariance = self.misfit_frac**2 * self._similar + np.diag(self._noise**2)
        self._inverse = np.asarray(np.linalg.inv(covariance), dtype=np.float64)

    def _prior(self) -> tuple[Array, Array]:
        """Means and deviations of all parameters; the scales come from the first trial, the user's own settings."""
        first, s = self._timed[0], self.setting
        image_s = math.log((first.image_s or 1.0) * s.n_ranks)  # of one rank
        wait = min(max(first.wait_frac or 0.0, 0.0), 0.95)
        head = 2.0 if s.on_cpu else 8.0
        sizes = [(o.mem_bytes, float(o.params.get(BATCH) or s.batch)) for o in self._sized if o.mem_bytes]
        level, at = sizes[0] if sizes else (s.limit_bytes or 1e9, s.batch)
        whole = first.params.get("compile") and first.params.get(WRAP) != "compiled_ddp"
        own: dict[int, tuple[float, float]] = {
            A: (image_s + math.log1p(-wait) - math.log(math.hypot(s.batch, head) / s.batch), 1.0),
            H: (math.log(head), 1.0),
            P: (math.log(2.0), 0.3),
            # Nothing was waited for: the loader needs less than the step, and nobody knows how much less.
            D: (image_s + math.log(max(wait, 0.35)) + 0.85 * math.log(max(s.workers, 1.0)), 1.0),
            G: (0.85, 0.15),
            Q: (math.log(6.0), 0.3),
            E: (image_s + math.log(0.15 * s.batch), 1.2),
            L: (math.log(0.02), 1.0),
            V: (math.log(0.45) + (COMPILED_HIDES[0] if whole else 0.0), 0.4),
            M: (math.log(0.4 * level), 0.8),
            K: (math.log(0.6 * level / at), 0.8),
            BUSY: (0.2, 0.2),
        }
        mean = np.concatenate([[own[i][0] for i in range(N_OWN)], self.encoding.mean])
        return mean, np.concatenate([[own[i][1] for i in range(N_OWN)], self.encoding.sd])

    def _fit(self) -> tuple[Array, Array]:
        """Maximum a posteriori and Laplace covariance, from where the last fit ended."""
        noise = np.sqrt(self._noise**2 + self.misfit_frac**2)
        part_sd = np.sqrt(noise**2 + PART_SD**2)
        step_s = self._y + self._x.log_batch + math.log(self.setting.n_ranks)
        wait = np.array([min(max(o.wait_frac or 0.0, 1e-3), 0.999) for o in self._timed])
        known = np.array([o.wait_frac is not None and o.wait_frac < 0.9 for o in self._timed])
        alone = ~self._x.has_workers & (wait > LEAST_WAIT)
        met = np.array([o.exchange_frac is not None for o in self._timed])
        exchange = np.array([max(o.exchange_frac or 0.0, LEAST_EXCHANGE) for o in self._timed])
        exchange_sd = np.hypot(EXCHANGE_SD, SHARE_SD / exchange)
        sizes = np.array([math.log(o.mem_bytes or 1.0) for o in self._sized])
        oom = np.array([o.oom for o in self._sized], dtype=bool)
        wall = math.log(BEYOND * (self.setting.limit_bytes or 1.0))

        def residuals(theta: Array) -> tuple[Array, Array]:
            value, slope = self.formula.slopes(theta, self._x)
            r = [
                (value[WHOLE] - step_s) / noise,
                np.where(known, value[COMPUTING] - step_s - np.log1p(-wait), 0.0) / part_sd,
                np.where(alone, value[LOADING] - step_s - np.log(wait), 0.0) / part_sd,
                np.where(met, value[EXCHANGE] - step_s - np.log(exchange), 0.0) / exchange_sd,
            ]
            weights = [1 / noise, known / part_sd, alone / part_sd, met / exchange_sd]
            j = [slope[i] * w[:, None] for i, w in zip((WHOLE, COMPUTING, LOADING, EXCHANGE), weights, strict=True)]
            if len(sizes):
                value, slope = self.formula.slopes(theta, self._x_sized)
                off = np.where(oom, np.minimum(value[MEMORY] - wall, 0.0), value[MEMORY] - sizes)
                r.append(off / MEMORY_SD)
                j.append(slope[MEMORY] * ((off != 0) / MEMORY_SD)[:, None])
            return np.concatenate(r), np.concatenate(j)

        return maximise(residuals, self._mean_of(self.trust), self._wide(), self.theta)

    def _mean_of(self, trust: float) -> Array:
        """Prior means of all parameters, with so much of the settings' beliefs."""
        kept = [1.0 if resource in ("memory", "kept") else trust for _, _, resource in self.encoding.labels]
        return np.concatenate([self._mean[:N_OWN], np.array(kept) * self._mean[N_OWN:]])

    def _wide(self) -> Array:
        """Deviations of all parameters; those of the settings' beliefs as wide as the data ask for."""
        return np.concatenate([self._sd[:N_OWN], self.wider * self._sd[N_OWN:]])

    def _likeliest(self) -> tuple[float, float, float]:
        """(trust, wider, misfit_frac), about the fit."""
        value, slope = self.formula.slopes(self.theta, self._x)
        slope = slope[WHOLE]
        error = self._y - self._per_image(value[WHOLE], self._x)
        off = {trust: error - slope @ (self._mean_of(trust) - self.theta) for trust, _ in TRUSTS}
        scaled = slope * self._sd
        own, effects = (part @ part.T for part in (scaled[:, :N_OWN], scaled[:, N_OWN:]))
        return likeliest(off, own, effects, self._similar, self._noise)

    def _per_image(self, log_step_s: Array, x: Configurations) -> Array:
        """Log seconds per image of all ranks, from those of a step."""
        return log_step_s - x.log_batch - math.log(self.setting.n_ranks)

    def forecast(self, configurations: Sequence[Params]) -> Forecast:
        """Predictions, with what the formula, its parameters and the residuals leave open."""
        return self.forecast_rows(self.encoding.rows(configurations))

    def forecast_rows(self, rows: Integers) -> Forecast:
        """The same for rows of the encoding."""
        x = self.formula.see(rows)
        value, slope = self.formula.slopes(self.theta, x)
        cross = self.misfit_frac**2 * similarity(rows, self._rows, self._counts)
        mean = self._per_image(value[WHOLE], x) + cross @ (self._inverse @ self._error)
        variance = quadratic(slope[WHOLE], self._covariance)
        variance = variance + np.maximum(self.misfit_frac**2 - quadratic(cross, self._inverse), 0.0)
        mem_sd = np.sqrt(quadratic(slope[MEMORY], self._covariance) + MEMORY_SD**2)
        return Forecast(mean, np.sqrt(variance), value[MEMORY], mem_sd)

    def draw(self, rng: np.random.Generator, n: int) -> Array:
        """(n, parameters) samples of the posterior of the parameters (Thompson's sampling).

        Laplace's Gaussian goes on where the data say stop: of a loader that nobody waits for only that it is fast
        enough is known, and the slope there is 0. So its samples are drawn again by how much less likely they make the
        observed times than its linear view of them says (sampling importance resampling; Rubin, 1988).
        """
        root = np.linalg.cholesky(self._covariance + 1e-10 * np.eye(len(self.theta)))
        steps = rng.standard_normal((OVERDRAW * n, len(self.theta))) @ root.T
        value, slope = self.formula.slopes(self.theta, self._x)
        off = self._y - self._per_image(value[WHOLE], self._x)
        noise = np.sqrt(self._noise**2 + self.misfit_frac**2)
        linear = (steps @ slope[WHOLE].T - off) / noise
        real = (self.formula.outputs(self.theta + steps, self._x)[WHOLE] - value[WHOLE] - off) / noise
        log_weight = np.minimum(0.5 * (linear**2 - real**2).sum(axis=1) + DOUBT, 0.0)
        weight = np.exp(log_weight - log_weight.max())
        out: Array = self.theta + steps[rng.choice(len(steps), n, p=weight / weight.sum())]
        return out

    def against(self, row: Integers, rows: Integers, thetas: Array) -> tuple[Array, Array, Array]:
        """What n configurations gain on one, with what they have in common left out of the doubt.

        Args:
            row: (knobs,) of the one.
            rows: (n, knobs) of the others.
            thetas: (k, parameters) of `draw`.

        Returns:
            Samples of log seconds per image of the one, (k, 1), of the others, (k, n), and the standard deviation (n,)
            of what the residuals add to their differences.
        """
        both = np.concatenate([row[None], rows])
        cross = self.misfit_frac**2 * similarity(both, self._rows, self._counts)
        values = self.by_formula(thetas, both)[0] + cross @ (self._inverse @ self._error)
        alike = similarity(rows, row[None], self._counts)[:, 0]
        variance = 2 * self.misfit_frac**2 * (1 - alike) - quadratic(cross[1:] - cross[:1], self._inverse)
        return values[:, :1], values[:, 1:], np.sqrt(np.maximum(variance, LEAST_SD**2))

    def by_formula(self, thetas: Array, rows: Integers) -> tuple[Array, Array]:
        """(k, rows) log seconds per image and log bytes, for k parameter vectors and without the residuals."""
        x = self.formula.see(rows)
        value = self.formula.outputs(thetas, x)
        return self._per_image(value[WHOLE], x), value[MEMORY]


def _params(observations: Sequence[Observation]) -> list[Params]:
    return [o.params for o in observations]
