"""python tests/bench/verdict_aa.py POOL.json OUT.json [--studies 10000]: does the verdict keep what it promises?

The whole finalist stage, as search/contest.py decides it: blocks, elimination, the simplest winner, the simultaneous
interval. (a) From the recorded pool of fresh runs of one configuration (aa_pool.py), in disjoint consecutive stretches.
(b) SIMULATED: studies from the generator that aa_pool.fit makes of that pool (slow drift and white noise). For each
number of candidates and injected gain: how often the interval holds the winner's true ratio, how often a gain is
claimed, and how often the fastest candidate was lost. Beside it, what the interval made for one comparison would do.
One core, about two minutes.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator
from math import exp, log
from pathlib import Path
from statistics import fmean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from aa_pool import fit
from cells import machine, save

from autotune.search import contest as rules
from autotune.search.contest import Contest, Entry
from autotune.search.verdict import judge

GAINS = (0.02, 0.03, 0.05, 0.10)
N_EXTRA = 2
"""Repeats of the baseline in the search."""
Run = Callable[[], float]
"""The log of the objective of the next run of an unchanged configuration."""


def study(run: Run, gains: list[float], max_blocks: int, rng: random.Random) -> dict[str, Any] | None:
    """One stage: candidate c<i> is faster by gains[i]. None: the runs gave out.

    Equals change equally many settings, so that the luckiest wins, which is hardest on the claim; the others draw it.
    """
    truth = {f"c{i}": gain for i, gain in enumerate(gains)}
    entries = {name: Entry(n_changes=rng.randint(1, 4) if any(gains) else 1) for name in truth}
    rules.MAX_BLOCKS = max_blocks  # type: ignore[misc]
    try:
        contest = Contest(entries, [[exp(run()) for _ in range(N_EXTRA)]])
        while order := contest.ask():
            rng.shuffle(order)
            block = contest.begin()
            for name in order:
                block[name] = exp(run() - log(1 + truth.get(name, 0.0)))
            contest.end()
    except StopIteration:
        return None
    winner = contest.winner
    assert winner is not None
    found = contest.judgement()
    ratio, alone = found.ratios[winner], judge(contest.blocks, contest.extra, best=winner).ratios[winner]
    true = 1 + truth[winner]
    return {
        "covered": (ratio.ci95_lo or 0.0) <= true <= (ratio.ci95_hi or 9.0),
        "covered_alone": (alone.ci95_lo or 0.0) <= true <= (alone.ci95_hi or 9.0),
        "gain": found.status == "gain",
        "gain_alone": (alone.ci95_lo or 0.0) > 1.0,
        "lost": truth[winner] < max(gains),
        "n_blocks": found.n_blocks,
        "n_runs": sum(map(len, contest.blocks)),
        "half_width": ((ratio.ci95_hi or 0.0) - (ratio.ci95_lo or 0.0)) / 2,
        "smallest": found.smallest_effect_frac,
    }


def share(studies: list[dict[str, Any]], key: str) -> dict[str, Any]:
    """A share with its exact binomial interval (Clopper and Pearson 1934)."""
    from scipy.stats import binomtest

    k = sum(bool(s[key]) for s in studies)
    ci = binomtest(k, len(studies)).proportion_ci(0.95, method="exact")
    return {"share": round(k / len(studies), 4), "ci95": [round(ci.low, 4), round(ci.high, 4)]}


def summary(studies: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of many studies of one kind."""
    return {
        "n": len(studies),
        "coverage": share(studies, "covered"),
        "coverage_of_an_interval_for_one": share(studies, "covered_alone"),
        "gain_claimed": share(studies, "gain"),
        "gain_claimed_by_an_interval_for_one": share(studies, "gain_alone"),
        "fastest_lost": share(studies, "lost"),
        "mean_blocks": round(fmean(s["n_blocks"] for s in studies), 2),
        "mean_runs": round(fmean(s["n_runs"] for s in studies), 2),
        "median_half_width": round(median(s["half_width"] for s in studies), 4),
        "median_smallest_effect": round(median(s["smallest"] for s in studies), 4),
    }


def drifting(fitted: tuple[float, float, float], rng: random.Random) -> Run:
    """Runs from the generator: AR(1) drift and white noise."""
    phi, drift_sd, noise_sd = fitted
    drift = rng.gauss(0, drift_sd)

    def run() -> float:
        nonlocal drift
        drift = phi * drift + rng.gauss(0, drift_sd * (1 - phi**2) ** 0.5)
        return drift + rng.gauss(0, noise_sd)

    return run


def recorded(logs: list[float], k: int, rng: random.Random) -> list[dict[str, Any]]:
    """A/A studies from disjoint consecutive runs, as many as the pool holds."""
    left: Iterator[float] = iter(logs)
    out = []
    while (one := study(lambda: -next(left), [0.0] * k, rules.MIN_BLOCKS, rng)) is not None:
        out.append(one)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pool", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--studies", type=int, default=10_000)
    given = parser.parse_args()
    pool = json.loads(given.pool.read_text())
    logs = [log(rate) for rate in pool["images_per_s"]]
    rng, fitted, most = random.Random(0), fit(logs), rules.MAX_BLOCKS

    def simulated(gains: list[float], max_blocks: int, n: int) -> dict[str, Any]:
        made = (study(drifting(fitted, rng), gains, max_blocks, rng) for _ in range(n))
        return summary([s for s in made if s is not None])

    figures: dict[str, Any] = {
        "recorded_aa": {f"{k} candidates": summary(recorded(logs, k, rng)) for k in (1, 2, 3)},
        "simulated_aa": {
            f"{k} candidates, at most {b} blocks": simulated([0.0] * k, b, given.studies)
            for k in (1, 2, 3)
            for b in (rules.MIN_BLOCKS, most)
        },
        "simulated_power": {
            f"gain {gain}, {k} candidates, at most {b} blocks": simulated(
                [gain, gain / 2, 0.0][:k], b, max(1, given.studies // 25)
            )
            for gain in GAINS
            for k in (1, 2, 3)
            for b in (rules.MIN_BLOCKS, 5, most)
        },
    }
    phi, drift_sd, noise_sd = fitted
    save(
        given.out,
        {
            "machine": machine(),
            "pool": {"file": given.pool.name, "cell": pool["cell"], "machine": pool["machine"]["cpu"]},
            "generator": {"label": "SIMULATED", "phi": phi, "drift_sd": drift_sd, "noise_sd": noise_sd},
            "figures": figures,
        },
    )
    for kind, rows in figures.items():
        for name, row in rows.items():
            print(kind, name, {k: v.get("share", v) if isinstance(v, dict) else v for k, v in row.items()})


if __name__ == "__main__":
    main()
