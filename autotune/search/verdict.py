"""Is the winner really better, by how much, and how sure are we? Pure statistics on runs of fresh processes.

Model: log objective = configuration + block + noise, with one noise variance for all configurations (two-way layout
without interaction; Scheffe, The Analysis of Variance, 1959, ch. 4). The unit is the run of a process, not the step,
because that is where the variance is (Kalibera & Jones, Rigorous benchmarking in reasonable time, ISMM 2013). The
variance is pooled: residuals of the layout, and the spread of whatever ran more than once during the search.

Where the winner was chosen among k candidates by the same runs, the fastest of them is a lucky one, and an interval
made for one comparison holds too seldom. So the intervals of the candidates hold together: each at the level
0.95^(1/k) (Sidak, Rectangular confidence regions for the means of multivariate normal distributions, JASA 62, 1967), so
that the one of whichever candidate is chosen holds, by whatever rule, in at least 95 % of searches. Why this, and not
fresh blocks for the winner alone, is in results/evidence/verdict_aa_2026-12-01.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, expm1, log, sqrt
from typing import Final, Literal

MIN_BLOCKS: Final = 3
"""With two, a plain interval of a noisy machine is +-40 % (MEASURING 5)."""
POWER: Final = 0.8
"""A gain of `smallest_effect_frac` is found in this share of comparisons (MEASURING 7 wants at least 80 %)."""
BASELINE: Final = "baseline"
LEVEL: Final = 0.95
NARROW: Final = 0.03
"""An interval narrower than this is written with three digits: 1.004-1.018 leaves out 1, 1.00-1.02 would not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Baseline (or another reference) over one configuration: above 1 is better than the baseline."""

    speedup: float
    ci95_lo: float | None
    ci95_hi: float | None
    n_blocks: int
    smallest_effect_frac: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Statistics of a comparison; finalists.py makes the contract's Verdict of it."""

    status: Literal["gain", "no_gain", "unconfirmed"]
    sentence: str
    n_blocks: int
    """Blocks in which both the baseline and the best ran."""
    ratios: dict[str, Ratio] = field(default_factory=dict)
    sigma_run_frac: float | None = None
    df: int = 0
    smallest_effect_frac: float | None = None


def pooled_variance(
    blocks: Sequence[Mapping[str, float]], extra_groups: Sequence[Sequence[float]] = ()
) -> tuple[float | None, int]:
    """Run-to-run variance of the log, and its degrees of freedom.

    Blocks may have holes: the residual of the least-squares fit of configuration + block effects has (runs - rank)
    degrees of freedom, which is (a-1)(b-1) when none is missing.

    Args:
        blocks: configuration -> positive value, one mapping a block.
        extra_groups: values of runs of one configuration each, outside of the blocks.

    Returns:
        (None, 0) when nothing was repeated.
    """
    import numpy as np

    sum_sq, df = 0.0, 0
    cells = [(i, name, log(value)) for i, block in enumerate(blocks) for name, value in block.items()]
    if cells:
        names = sorted({name for _, name, _ in cells})
        design = np.zeros((len(cells), len(blocks) + len(names)))
        for row, (i, name, _) in enumerate(cells):
            design[row, i] = design[row, len(blocks) + names.index(name)] = 1.0
        y = np.array([value for _, _, value in cells])
        fit, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
        sum_sq += float(((y - design @ fit) ** 2).sum())
        df += len(cells) - int(rank)
    for group in extra_groups:
        if len(group) > 1:
            logs = np.log(np.asarray(group, dtype=float))
            sum_sq += float(((logs - logs.mean()) ** 2).sum())
            df += len(group) - 1
    return (sum_sq / df, df) if df else (None, 0)


def compare(
    blocks: Sequence[Mapping[str, float]],
    name: str,
    variance: float | None,
    df: int,
    *,
    reference: str = BASELINE,
    n_compared: int = 1,
) -> Ratio | None:
    """A reference against one configuration, over the blocks in which both ran.

    ratio = exp(mean of log differences +- t(0.975, df) * s * sqrt(2 / blocks)); None without a common block. With
    n_compared > 1, the level of t is such that so many intervals hold together.
    """
    from scipy.special import stdtrit  # quantile of Student t; scipy.stats would take seconds to import

    diffs = [log(b[reference]) - log(b[name]) for b in blocks if reference in b and name in b]
    if not diffs:
        return None
    mean = sum(diffs) / len(diffs)
    lo = hi = smallest = None
    if variance is not None:
        se = sqrt(variance * 2 / len(diffs))
        half = float(stdtrit(df, (1 + LEVEL ** (1 / n_compared)) / 2)) * se
        lo, hi = exp(mean - half), exp(mean + half)
        smallest = expm1(half + float(stdtrit(df, POWER)) * se)
    return Ratio(speedup=exp(mean), ci95_lo=lo, ci95_hi=hi, n_blocks=len(diffs), smallest_effect_frac=smallest)


def judge(
    blocks: Sequence[Mapping[str, float]],
    extra_groups: Sequence[Sequence[float]] = (),
    *,
    best: str = "best",
    compared: Sequence[str] = (),
    interrupted: bool = False,
    better: str = "faster",
) -> Judgement:
    """The claim about `best`, from finalist runs.

    Args:
        blocks: configuration name -> objective (lower is better, positive) of its fresh run; a run that failed is
            missing from its block.
        extra_groups: objective of repeats outside the blocks (baseline and sentinels); only their spread is used.
        best: which configuration the claim is about.
        compared: the candidates among which it was chosen; the intervals of all of them hold together.
        interrupted: the stage did not end by itself, so nothing is claimed.
        better: what less of the objective is, in words (objective.BETTER).
    """
    variance, df = pooled_variance(blocks, extra_groups)
    names = dict.fromkeys(name for block in blocks for name in block)
    n_compared = {n: len(compared) for n in compared}
    ratios = {
        n: r
        for n in names
        if n != BASELINE and (r := compare(blocks, n, variance, df, n_compared=n_compared.get(n, 1))) is not None
    }
    ratio = ratios.get(best)
    sigma = sqrt(variance) if variance is not None else None
    status = _status(ratio, interrupted)
    others = [r for n in compared if (r := ratios.get(n)) is not None and r.n_blocks >= MIN_BLOCKS]
    most = max((r.ci95_hi or 0.0 for r in (*others, *([ratio] if ratio else []))), default=0.0)
    return Judgement(
        status=status,
        sentence=_sentence(status, ratio, interrupted, most, better),
        n_blocks=ratio.n_blocks if ratio else 0,
        ratios=ratios,
        sigma_run_frac=sigma,
        df=df,
        smallest_effect_frac=ratio.smallest_effect_frac if ratio else None,
    )


def _status(ratio: Ratio | None, interrupted: bool) -> Literal["gain", "no_gain", "unconfirmed"]:
    if interrupted or ratio is None or ratio.n_blocks < MIN_BLOCKS or ratio.ci95_lo is None:
        return "unconfirmed"
    return "gain" if ratio.ci95_lo > 1.0 else "no_gain"


def _sentence(status: str, ratio: Ratio | None, interrupted: bool, most: float, better: str) -> str:
    """The claim in words; numbers as many digits as they carry.

    Args:
        status: of the claim.
        ratio: of the winner.
        interrupted: the stage did not end by itself.
        most: the largest gain that the intervals of all candidates allow.
        better: as in `judge`.
    """
    if status == "unconfirmed" or ratio is None or ratio.ci95_lo is None or ratio.ci95_hi is None:
        why = "interrupted" if interrupted else "the budget left no time for fresh runs, or they failed"
        if ratio is None:
            return f"unconfirmed: the best found was not compared with your settings in fresh runs ({why})"
        blocks = "1 block" if ratio.n_blocks == 1 else f"{ratio.n_blocks} blocks"
        so_far = f"unconfirmed: {ratio.speedup:.2f}x in {blocks} of fresh runs"
        if interrupted and ratio.n_blocks >= MIN_BLOCKS:
            return f"{so_far}; interrupted before their comparison was over"
        why = "interrupted" if interrupted else "a longer budget allows them"
        return f"{so_far}; a claim needs {MIN_BLOCKS} ({why})"
    in_blocks = f"{ratio.n_blocks} interleaved blocks of fresh runs"
    n = 3 if ratio.ci95_hi - ratio.ci95_lo < NARROW else 2
    gain, interval = f"{ratio.speedup:.{n}f}x", f"95 % CI {ratio.ci95_lo:.{n}f}-{ratio.ci95_hi:.{n}f}"
    found = f"could have found a gain of {percent(ratio.smallest_effect_frac or 0.0)} %"
    if status == "gain":
        return f"{gain} {better} than your settings ({interval}), {in_blocks}; {found}"
    if most < 1.0:
        return f"no gain: your settings beat the best found ({gain}, {interval}), {in_blocks}"
    return (
        f"no significant gain: your settings are within {percent(most - 1.0)} % of the best found "
        f"({gain}, {interval}), {in_blocks}; {found}"
    )


def percent(frac: float) -> str:
    """A share in per cent, rounded up so that `within` and `or more` stay true: 0.034 -> `4`, 0.004 -> `0.4`."""
    value = 100 * frac
    step = 0.1 if value < 1 else 1.0
    rounded = step * -int(-(value / step - 1e-9) // 1) if value > 0 else 0.0
    return f"{rounded:.1f}" if value < 1 else f"{rounded:.0f}"
