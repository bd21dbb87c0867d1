"""python tests/bench/aa_pool.py OUT.json [--runs 80] [--analyse]: does a verdict on two equal configurations say so?

Run by hand. A pool of fresh runs of one configuration, recorded once. Verdicts (search/verdict.py) are drawn from
disjoint consecutive stretches of it, three blocks of baseline and best and two repeats of the baseline each, and 10,000
more from a generator fitted to the pool (simulated). Coverage: the share of 95 % intervals that hold the true ratio, 1.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from math import exp, log
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from cells import Cell, job, machine, save, trial

from autotune.contract import SegmentSettings
from autotune.run.dataset import DatasetView
from autotune.search.verdict import judge

CELL = Cell("imgsz 64, batch 8", args={"imgsz": 64, "batch": 8})
SEGMENT = SegmentSettings(
    warmup_steps=4,
    warmup_s=1.0,
    warmup_cap_s=3.0,
    measure_s=2.5,
    measure_steps=6,
    measure_cap_s=5.0,
    ci_target_frac=0.08,
)
N_BLOCKS = 3
N_EXTRA = 2
RUNS_PER_VERDICT = 2 * N_BLOCKS + N_EXTRA
N_SIMULATED = 10_000


def record(out: Path, n_runs: int) -> list[float]:
    """Images a second of n fresh runs."""
    rates: list[float] = []
    with tempfile.TemporaryDirectory(prefix="aa-") as tmp:
        view = DatasetView(job(CELL)["data"], "detect", Path(tmp) / "view")
        while len(rates) < n_runs:
            result = trial(CELL, view.path(False), Path(tmp) / f"{len(rates)}", segment=SEGMENT)
            if result.images_per_s is None:
                sys.exit(f"{result.outcome}: {result.error}")
            rates.append(result.images_per_s)
            print(len(rates), f"{rates[-1]:.1f}", flush=True)
            save(out, {"machine": machine(), "cell": CELL.name, "images_per_s": rates})
    return rates


def verdict(rates: list[float], rng: random.Random) -> tuple[bool, float]:
    """(does the interval hold 1, its half-width) of one comparison of equals, from runs in the order they were made."""
    extra = [1 / r for r in rates[:N_EXTRA]]
    blocks = []
    for i in range(N_BLOCKS):
        pair = rates[N_EXTRA + 2 * i : N_EXTRA + 2 * i + 2]
        names = rng.sample(["baseline", "best"], 2)
        blocks.append({name: 1 / rate for name, rate in zip(names, pair, strict=True)})
    ratio = judge(blocks, [extra]).ratios["best"]
    assert ratio.ci95_lo is not None
    assert ratio.ci95_hi is not None
    return ratio.ci95_lo <= 1.0 <= ratio.ci95_hi, (ratio.ci95_hi - ratio.ci95_lo) / 2


def fit(logs: list[float]) -> tuple[float, float, float]:
    """(phi, sd of drift, sd of white noise): AR(1) drift plus noise, from the autocovariances at lags 0, 1 and 2."""
    mean = fmean(logs)
    d = [x - mean for x in logs]

    def cov(lag: int) -> float:
        return sum(a * b for a, b in zip(d, d[lag:], strict=False)) / len(d)

    c0, c1, c2 = cov(0), cov(1), cov(2)
    phi = min(max(c2 / c1, 0.0), 0.99) if c1 > 0 else 0.0
    drift = min(max(c1 / phi, 0.0), c0) if phi > 0 else 0.0
    return phi, drift**0.5, (c0 - drift) ** 0.5


def simulate(logs: list[float], n: int, rng: random.Random) -> list[tuple[bool, float]]:
    """Verdicts on runs drawn from the fitted generator."""
    phi, drift_sd, noise_sd = fit(logs)
    out = []
    for _ in range(n):
        drift = rng.gauss(0, drift_sd)
        rates = []
        for _ in range(RUNS_PER_VERDICT):
            rates.append(exp(fmean(logs) + drift + rng.gauss(0, noise_sd)))
            drift = phi * drift + rng.gauss(0, drift_sd * (1 - phi**2) ** 0.5)
        out.append(verdict(rates, rng))
    return out


def coverage(verdicts: list[tuple[bool, float]]) -> dict[str, Any]:
    """Share that holds 1, with its exact binomial interval (Clopper and Pearson 1934), and the median half-width."""
    from scipy.stats import binomtest

    k, n = sum(ok for ok, _ in verdicts), len(verdicts)
    ci = binomtest(k, n).proportion_ci(0.95, method="exact")
    return {"n": n, "coverage": k / n, "ci95": [ci.low, ci.high], "median_half_width": median(h for _, h in verdicts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", type=int, default=80)
    parser.add_argument("--analyse", action="store_true", help="only analyse the pool that OUT.json holds")
    given = parser.parse_args()
    pool = json.loads(given.out.read_text()) if given.analyse else {}
    rates = pool.get("images_per_s") or record(given.out, given.runs)
    where = pool.get("machine") or machine()
    rng = random.Random(0)
    logs = [log(r) for r in rates]
    stretches = [rates[i : i + RUNS_PER_VERDICT] for i in range(0, len(rates) - RUNS_PER_VERDICT + 1, RUNS_PER_VERDICT)]
    phi, drift, noise = fit(logs)
    figures = {
        "sd_of_a_run": stdev(logs),
        "recorded": coverage([verdict(s, rng) for s in stretches]),
        "simulated": coverage(simulate(logs, N_SIMULATED, rng)) | {"phi": phi, "drift_sd": drift, "noise_sd": noise},
    }
    save(given.out, {"machine": where, "cell": CELL.name, "summary": figures, "images_per_s": rates})
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
