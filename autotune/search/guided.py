"""What does the structured surrogate propose next? (SEARCH 5.3 to 5.5)

Expected improvement of the objective times the probability that it fits into memory, over the price to a power that
cools from 1 to 0: what is cheap first, what is best later. The improvement is a mean over samples of the model, each of
which has an opinion of the best, too: fewer loader workers cannot make a step faster that never waited, however little
is known of the loader. Where the space is too large to list, candidates.py says what is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from autotune.contract import Guess, NotTried, Params
from autotune.search.candidates import around
from autotune.search.effects import THREADS, Array, Encoding, Integers, encode
from autotune.search.formula import Setting
from autotune.search.inert import frozen
from autotune.search.model import Forecast, Surrogate
from autotune.search.observations import Observation, backward_per_forward, exchange_frac, observe, pooled_noise
from autotune.search.price import COMPILE_KEY
from autotune.search.proposals import key_of
from autotune.search.situation import LARGE_MISFIT, Proposal, Situation
from autotune.search.stopping import GAIN_FRAC
from autotune.space.knobs import COMMUNICATION

FITS: Final = 0.9
"""A configuration that is less likely to fit into memory is not launched."""
COOL: Final = 24
"""Trials until the price no longer counts."""
HEDGE_FROM: Final = 8
HEDGES: Final = ((LARGE_MISFIT, 4), (0.0, 8))
"""(misfit from, every so many trials the sampler has its turn): the further off the formula is, the more often."""
TOP: Final = 6
N_OPINIONS: Final = 48
"""Samples of the model over which the expected improvement is a mean."""
FINALISTS: Final = 64
"""Candidates whose spelling is looked at."""
ENUMERABLE: Final = 3000


def propose(s: Situation) -> Proposal:
    """The next configuration, or None for the sampler's turn; with what the model thinks that another trial brings."""
    observations = observe(s.ran, on_cpu=s.on_cpu)
    if not any(o.image_s for o in observations) or not s.proposals.domain:
        return Proposal()
    mind = Mind(s, observations)
    said = Proposal(misfit_frac=mind.model.misfit_frac, doubts=mind.doubts(), guess=mind.guess, oom=mind.oom)
    candidates = mind.candidates()
    if not candidates:
        return said
    fits, improvement = mind.fits(mind.model.forecast(candidates)), mind.improvement(candidates)
    worth = np.where(fits >= FITS, improvement * fits, -1.0)
    power = max(0.0, 1.0 - s.n_trials / COOL)
    price = np.array([s.price(params).total_s for params in candidates]) if power else np.ones(len(candidates))
    order = np.argsort(-worth / np.maximum(price, 1e-3) ** power)
    chosen = next((candidates[i] for i in order if worth[i] >= 0 and not s.why_not(candidates[i])), None)
    unfit = int(np.argmax(np.where(fits < FITS, improvement, -1.0)))
    too_large = None
    if fits[unfit] < FITS and improvement[unfit] > max(GAIN_FRAC, worth.max()):
        reason = f"promises more than all others, and runs out of memory with a probability of {1 - fits[unfit]:.0%}"
        too_large = NotTried(params=candidates[unfit], price_s=None, reason=reason, predicted_oom=True)
    if chosen is None:
        return replace(said, too_large=too_large)
    n = s.n_trials
    hedged = n >= HEDGE_FROM and n % next(every for least, every in HEDGES if said.misfit_frac >= least) == 0
    return replace(
        said,
        params=None if hedged else chosen,
        fixed=mind.fixed if hedged else {},
        # Of what may be tried: what is refused stays unknown, and would promise its gain for ever.
        gain_frac=next(float(worth[i]) for i in np.argsort(-worth) if not s.why_not(candidates[i])),
        inert=mind.inert,
        too_large=too_large,
    )


@dataclass(frozen=True, slots=True)
class _Job:
    """The objective as a function of seconds per image: value = steps * ratio + rest + what is paid once."""

    steps: float
    rest: float
    image_s: float
    """Of the user's own settings."""
    once: bool


class Mind:
    """The fitted model with the objective in front of it.

    Args:
        s: where the search stands.
        observations: of it.
    """

    def __init__(self, s: Situation, observations: Sequence[Observation]) -> None:
        self.s = s
        domain = s.proposals.domain
        exchanging = frozenset(COMMUNICATION) if s.n_ranks > 1 else frozenset[str]()
        self.encoding: Encoding = encode(domain, s.proposals.baseline, exchanging, on_cpu=s.on_cpu)
        cores = max((float(v) for v in domain.get(THREADS, ()) if isinstance(v, int)), default=1.0)
        setting = Setting(
            n_ranks=s.n_ranks,
            on_cpu=s.on_cpu,
            n_cores=cores,
            limit_bytes=s.limit_bytes,
            gradient_bytes=s.baseline.result.job.get("gradient_bytes"),
        )
        self.model = Surrogate(self.encoding, setting, observations)
        self.rng = np.random.default_rng((s.seed, len(s.ran)))
        self.noise = pooled_noise(s.ran)
        self._room = math.inf if s.limit_bytes is None else math.log(s.limit_bytes)
        self._job = self._shape()
        measured = {key_of(o.params): o.params for o in observations if o.image_s}
        self.measured = list(measured.values())
        at = self.model.forecast(self.measured)
        self._values = self._log_objective(self.measured, at)
        self.order = np.argsort(self._values)
        per_forward = backward_per_forward(s.ran)
        shares = {r.number: exchange_frac(r.result, per_forward) for r in s.ran if r.result.role != "probe"}
        self.fixed, self.inert = frozen(s.ran, {n: e for n, e in shares.items() if e is not None}, tuple(domain))
        self.thetas = self.model.draw(self.rng, N_OPINIONS)

    def _shape(self) -> _Job:
        result = self.s.baseline.result
        image_s = 1.0 / (result.images_per_s or 1.0)
        value = self.s.baseline.value or 1.0
        if self.s.objective != "job_time":
            return _Job(value, 0.0, image_s, once=False)
        terms = result.job_terms
        steps = sum(terms.get(t) or 0.0 for t in ("mosaic_epochs_s", "closed_epochs_s"))
        paid = sum(terms.get(t) or 0.0 for t in ("compile_s", "cache_build_s"))
        return _Job(steps, max(0.0, value - steps - paid), image_s, once=True)

    def _once(self, configurations: Sequence[Params]) -> Array:
        """(n,) seconds that the job pays once, whatever its length."""
        out = np.zeros(len(configurations))
        for i, params in enumerate(configurations if self._job.once else ()):
            if params.get("compile") or params.get("cache"):
                price = self.s.cold(params)
                out[i] = price.compile_s + price.cache_s
        return out

    def _once_of_rows(self, rows: Integers) -> Array:
        """The same for rows of the encoding."""
        at = [j for j, name in enumerate(self.encoding.names) if name in (*COMPILE_KEY, "cache")]
        if not self._job.once or not at:
            return np.zeros(len(rows))
        _, first, which = np.unique(rows[:, at], axis=0, return_index=True, return_inverse=True)
        out: Array = self._once([self.encoding.params(rows[i]) for i in first])[which.reshape(-1)]
        return out

    def _parts(self, log_image_s: Array, once: Array) -> tuple[Array, Array]:
        """(objective, its part that scales with the steps)."""
        steps = self._job.steps * np.exp(log_image_s) / self._job.image_s
        return steps + self._job.rest + once, steps

    def _log_objective(self, configurations: Sequence[Params], forecast: Forecast) -> Array:
        out: Array = np.log(self._parts(forecast.log_image_s, self._once(configurations))[0])
        return out

    def improvement(self, configurations: Sequence[Params]) -> Array:
        """(n,) expected improvement of the log of the objective over the best posterior mean that was measured.

        For each sample of the model that of a Gaussian (Jones, Schonlau and Welch, Efficient Global Optimization, 1998,
        eq. 15) with the residuals' deviation; their mean.
        """
        return self._improvement(self.encoding.rows(configurations), self._once(configurations))

    def _improvement(self, rows: Integers, once: Array) -> Array:
        """The same for rows of the encoding, and what each pays once."""
        from scipy.special import ndtr

        best = self.measured[self.order[0]]
        here, there, sd = self.model.against(self.encoding.rows([best])[0], rows, self.thetas)
        own = self._parts(here, self._once([best]))[0]
        value, steps = self._parts(there, once)
        sd = sd * steps / value
        z = np.log(own / value) / sd
        out: Array = (sd * (z * ndtr(z) + np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi))).mean(axis=0)
        return out

    def fits(self, forecast: Forecast) -> Array:
        """Probability that each stays below the limit; 1 where none is known.

        Of the whole limit: what a trial may need and what is safe for a whole training are two questions, and the
        certificate answers the other (search/certificates.py).
        """
        from scipy.special import ndtr

        out: Array = ndtr((self._room - forecast.log_mem_bytes) / forecast.mem_sd)
        return out

    def doubts(self) -> tuple[str, ...]:
        """What speaks against the model, in words."""
        said = []
        if self.model.misfit_frac >= LARGE_MISFIT:
            off = f"the model that chose what to try is {self.model.misfit_frac:.0%} off on this machine"
            said.append(f"{off}: from trial {HEDGE_FROM} on every {HEDGES[0][1]}th is the sampler's")
        if self.model.trust < 1:
            usual = "what usually makes these settings faster or slower does not hold on this machine"
            said.append(f"{usual}: the trials spoke against it, and the model went by them alone")
        return tuple(said)

    def guess(self, params: Params) -> Guess:
        """What is expected of one run."""
        forecast = self.model.forecast([params])
        value, steps = (float(x[0]) for x in self._parts(forecast.log_image_s, self._once([params])))
        half = 1.96 * math.hypot(float(forecast.sd[0]), self.noise) * steps / value
        return Guess(
            value=value,
            lo=value * math.exp(-half),
            hi=value * math.exp(half),
            mem_bytes=math.exp(forecast.log_mem_bytes[0]) if self.model.knows_memory else None,
        )

    def oom(self, params: Params) -> float:
        """Probability that it does not fit."""
        return 1.0 - float(self.fits(self.model.forecast([params]))[0])

    def nearby(self) -> Integers:
        """Rows of a space too large to list that are worth a look."""
        top = self.encoding.rows(self.measured)[self.order[:TOP]]
        return around(self.model, top, self.fixed, self._room, self.rng)

    def candidates(self) -> list[Params]:
        """Configurations that nobody has tried, spelled as they would run; the best that does not fit is among them."""
        every = self.s.proposals.every()
        if every is not None and len(every) <= ENUMERABLE:
            return [p for key, p in every.items() if key not in self.s.proposals.known]
        rows = self.nearby()
        improvement = self._improvement(rows, self._once_of_rows(rows))
        fit = self.fits(self.model.forecast_rows(rows)) >= FITS
        order = np.argsort(np.where(fit, -improvement, 1.0))
        too_large = [] if fit.all() else [np.argmax(np.where(fit, -1.0, improvement))]
        out: dict[str, Params] = {}
        for i in (*too_large, *order):
            params = self.s.proposals.complete(self.encoding.params(rows[i]))
            key = key_of(params)
            if key not in self.s.proposals.known and key not in out and self.s.proposals.exists(params):
                out[key] = params
                if len(out) >= FINALISTS:
                    break
        return list(out.values())
