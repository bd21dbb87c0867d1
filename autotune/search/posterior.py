"""Which measured configurations are really the fastest? What to believe after the search, in place of lucky numbers.

The lowest of many noisy numbers is low by luck as well. With y the log of the objective of a run, x the settings that
differ from the user's (one column for each value of each knob), and s the noise from run to run:

    y_run = f + e,  f = m + x'b + d,   b ~ N(0, w^2),  d ~ N(0, t^2) for each configuration,  e ~ N(0, s^2)

The posterior mean of f is the best linear unbiased prediction (Robinson, That BLUP is a good thing, Statistical Science
6, 1991), which is Gaussian process regression with covariance w^2 XX' + t^2 I (Rasmussen & Williams, Gaussian Processes
for Machine Learning, 2006, eq. 2.25 and 2.41). w and t are those of a grid that make the data likeliest, m being
integrated out (empirical Bayes; eq. 2.45). s^2 is pooled over whatever ran more than once. A configuration that ran
twice is believed more than one that ran once, and one whose settings did well elsewhere more than one whose did not.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from autotune.contract import Params, Value
from autotune.search.incumbent import NOISE_FRAC
from autotune.search.proposals import changes_of, key_of
from autotune.search.ran import Ran
from autotune.search.session import Session

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]

MAX_CANDIDATES: Final = 3
FAR_FRAC: Final = 0.10
"""A candidate so far behind the first one is not worth three fresh runs."""
MIN_CONFIGURATIONS: Final = 4
"""With fewer there is nothing to learn a model from: plain means."""
PRIOR_DF: Final = 2.0
"""Weight of NOISE_FRAC in the pooled variance: two runs that happen to agree are no proof of a quiet machine."""
EFFECTS: Final = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Grid of w: a setting changes the log of the objective by so much."""
TOGETHER: Final = (0.003, 0.01, 0.03, 0.1, 0.3)
"""Grid of t: what settings do together beyond their sum."""
WHOLE: Final = ("baseline", "trial", "sentinel", "finalist", "ablation")
"""Roles that run a whole training."""


@dataclass(frozen=True, slots=True)
class Posterior:
    """What is believed of the log of the objective.

    Attributes:
        means: key of a measured configuration -> posterior mean.
        variance: of the log of a run, pooled.
    """

    means: dict[str, float]
    variance: float
    _columns: dict[str, int]
    _effects: tuple[float, ...]
    """Posterior mean of b, one a column."""

    def gain(self, knob: str, value: Value) -> float:
        """Expected log gain of one change by itself: above 0, it helps. 0 where nothing is known."""
        column = self._columns.get(_column(knob, value))
        return 0.0 if column is None else -self._effects[column]


def fit(session: Session) -> Posterior:
    """The posterior of everything that the session has measured so far."""
    assert session.proposals is not None
    runs = [r for r in session.ran if r.result.role in WHOLE and r.result.outcome.measured and r.value]
    by_key: dict[str, list[Ran]] = {}
    for ran in runs:
        by_key.setdefault(key_of(ran.result.params), []).append(ran)
    logs = {key: [math.log(r.value or 1.0) for r in rs] for key, rs in by_key.items()}
    variance = _pooled(list(logs.values()))
    # An unstable run may be as much slower as its doubt says: that much wider it counts.
    noise = {key: fmean(variance + (math.log(r.doubt) / 1.96) ** 2 for r in rs) / len(rs) for key, rs in by_key.items()}
    changes = {key: changes_of(rs[0].result.params, session.proposals.baseline) for key, rs in by_key.items()}
    return regress({key: fmean(ys) for key, ys in logs.items()}, noise, changes, variance)


def regress(means: dict[str, float], noise: dict[str, float], changes: dict[str, Params], variance: float) -> Posterior:
    """The model above, on plain values.

    Args:
        means: key -> mean log of the objective over the runs of this configuration.
        noise: key -> variance of that mean.
        changes: key -> what differs from the user's settings.
        variance: of one run.
    """
    import numpy as np

    names = sorted({_column(n, v) for c in changes.values() for n, v in c.items()})
    columns = {name: i for i, name in enumerate(names)}
    y = np.array(list(means.values()))
    if len(y) < MIN_CONFIGURATIONS:
        return Posterior(dict(means), variance, {}, ())
    x = np.zeros((len(y), len(columns)))
    for row, key in enumerate(means):
        for name, value in changes[key].items():
            x[row, columns[_column(name, value)]] = 1.0
    gram, own = x @ x.T, np.diag([noise[key] for key in means])
    grid = [(w, t) for w in EFFECTS for t in TOGETHER]
    w, t = grid[int(np.argmax(_evidence(np.stack([w * w * gram + t * t * np.eye(len(y)) + own for w, t in grid]), y)))]
    prior = w * w * gram + t * t * np.eye(len(y))
    inverse = np.linalg.inv(prior + own)
    m = float(inverse.sum(axis=0) @ y / inverse.sum())
    weights = inverse @ (y - m)
    believed = m + prior @ weights
    effects = w * w * (x.T @ weights)
    return Posterior(dict(zip(means, map(float, believed), strict=True)), variance, columns, tuple(map(float, effects)))


def _evidence(covariances: Array, y: Array) -> Array:
    """Log likelihood of the data with their mean integrated out (restricted likelihood), up to a constant.

    Args:
        covariances: of shape (k, n, n): k guesses, all in one call.
        y: n values.
    """
    import numpy as np

    inverses = np.linalg.inv(covariances)
    totals = inverses.sum(axis=(1, 2))
    rest = y - (inverses.sum(axis=1) @ y / totals)[:, None]
    fit = np.einsum("ki,kij,kj->k", rest, inverses, rest)
    evidence: Array = -0.5 * (fit + np.linalg.slogdet(covariances)[1] + np.log(totals))
    return evidence


def _pooled(groups: list[list[float]]) -> float:
    """Variance of the log of a run over configurations that ran more than once, NOISE_FRAC counting as PRIOR_DF."""
    sum_sq = sum((y - fmean(ys)) ** 2 for ys in groups for y in ys)
    df = sum(len(ys) - 1 for ys in groups)
    return (sum_sq + PRIOR_DF * NOISE_FRAC**2) / (df + PRIOR_DF)


def _column(knob: str, value: object) -> str:
    return f"{knob}={json.dumps(value)}"


def candidates(session: Session) -> list[Ran]:
    """Search trials that may be the fastest, the likeliest first: at most three, none of them the user's own settings.

    Left out: what failed in a fresh run, what is slower than the user's settings by more than the noise, and what is
    far behind the first. The best by the plain numbers is there in any case, if it is not the user's own.
    """
    assert session.baseline is not None
    assert session.proposals is not None
    tried = {
        key_of(r.result.params): r
        for r in session.ran
        if r.result.role == "trial" and r.result.outcome.measured and r.value and r.changes
    }
    tried = {key: r for key, r in tried.items() if key not in session.failed}
    if not tried:
        return []
    posterior = fit(session)
    ranked = sorted(tried, key=lambda key: (posterior.means[key], len(tried[key].changes), tried[key].number))
    own = posterior.means.get(key_of(session.proposals.baseline), math.inf)
    limit = min(own + math.log1p(session.noise_frac()), posterior.means[ranked[0]] + math.log1p(FAR_FRAC))
    chosen = [tried[key] for key in ranked if posterior.means[key] <= limit][:MAX_CANDIDATES]
    best = session.best()
    if best.changes and not chosen:
        return [best]
    return chosen
