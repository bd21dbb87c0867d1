"""python tests/bench/recheck_aa.py POOL.json [--run RUN --out OUT.json --n 5 --budget 4m]: does a recheck cry wolf?

False alarms of the rule (search/holds.py) where nothing has changed, and its power:
- recorded: receipt and recheck from disjoint consecutive stretches of a recorded pool of fresh runs of one
  configuration (aa_pool.py), so that the machine's own drift is in them; every pair of stretches in its order of time;
- simulated: 10,000 pairs from the generator fitted to that pool (labelled so), and a loss of 10, 20 and 40 % put in;
- with --run: real rechecks of that run folder, on this idle machine. A/A: n of them; then one with a sleep in every
  step of the winner's processes only, three times as long as the step (inject/sitecustomize.py), which must be found.
Run by hand. Without --run nothing is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from math import exp, log
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from aa_pool import N_EXTRA, fit
from cells import machine, save

from autotune.contract import Comparison
from autotune.search.holds import holding
from autotune.search.verdict import judge

THEN_BLOCKS = 3
NOW_BLOCKS = (3, 5, 8)
N_SIMULATED = 10_000
LOSSES = (0.10, 0.20, 0.40)
SLOWDOWN_FRAC = 3.0
INJECT = Path(__file__).parent / "inject"


def comparison(rates: list[float], n_blocks: int, rng: random.Random, loss: float = 0.0) -> Comparison:
    """Of two equals, from runs in the order in which they were made; the first ones beyond the blocks are repeats.

    Args:
        rates: images/s.
        n_blocks: of two runs, at the end of `rates`.
        rng: chooses which of the two came first.
        loss: of the winner, as a share.
    """
    n_extra = len(rates) - 2 * n_blocks
    blocks = []
    for i in range(n_blocks):
        pair = rng.sample(rates[n_extra + 2 * i : n_extra + 2 * i + 2], 2)
        blocks.append({"baseline": 1 / pair[0], "best": 1 / (pair[1] * (1 - loss))})
    judged = judge(blocks, [[1 / r for r in rates[:n_extra]]])
    ratio, sigma = judged.ratios["best"], judged.sigma_run_frac
    assert ratio.ci95_lo is not None
    assert ratio.ci95_hi is not None
    assert sigma is not None
    return Comparison(
        speedup=ratio.speedup,
        ci95_lo=ratio.ci95_lo,
        ci95_hi=ratio.ci95_hi,
        n_blocks=n_blocks,
        sigma_run_frac=sigma,
        df=judged.df,
    )


def pairs(n_runs: int, n_blocks: int) -> Iterator[tuple[slice, slice]]:
    """Where receipt and recheck lie in the pool: stretches that do not overlap, the recheck later."""
    n_then, n_now = 2 * THEN_BLOCKS + N_EXTRA, 2 * n_blocks
    for a in range(0, n_runs - n_then - n_now + 1, n_then):
        for b in range(a + n_then, n_runs - n_now + 1, n_now):
            yield slice(a, a + n_then), slice(b, b + n_now)


def recorded(rates: list[float], n_blocks: int, rng: random.Random) -> list[bool]:
    """An alarm or none, for every pair; pairs share runs, so they are fewer than they look."""
    return [
        holding(comparison(rates[then], THEN_BLOCKS, rng), comparison(rates[now], n_blocks, rng)).status
        == "does_not_hold"
        for then, now in pairs(len(rates), n_blocks)
    ]


def simulated(logs: list[float], n_blocks: int, rng: random.Random, loss: float, n: int) -> list[bool]:
    """The same with two sittings drawn apart from the fitted generator."""
    phi, drift_sd, noise_sd = fit(logs)

    def sitting(n_runs: int) -> list[float]:
        drift, out = rng.gauss(0, drift_sd), []
        for _ in range(n_runs):
            out.append(exp(fmean(logs) + drift + rng.gauss(0, noise_sd)))
            drift = phi * drift + rng.gauss(0, drift_sd * (1 - phi**2) ** 0.5)
        return out

    out = []
    for _ in range(n):
        then = comparison(sitting(2 * THEN_BLOCKS + N_EXTRA), THEN_BLOCKS, rng)
        out.append(holding(then, comparison(sitting(2 * n_blocks), n_blocks, rng, loss)).status == "does_not_hold")
    return out


def share(alarms: list[bool]) -> dict[str, Any]:
    """With its exact binomial interval (Clopper and Pearson 1934)."""
    from scipy.stats import binomtest

    k, n = sum(alarms), len(alarms)
    ci = binomtest(k, n).proportion_ci(0.95, method="exact")
    return {"n": n, "alarms": k, "share": k / n, "ci95": [ci.low, ci.high]}


def from_pool(rates: list[float]) -> dict[str, Any]:
    """Figures by number of blocks of the recheck."""
    rng, logs = random.Random(0), [log(r) for r in rates]
    out: dict[str, Any] = {}
    for n_blocks in NOW_BLOCKS:
        out[f"{n_blocks} blocks"] = {
            "false alarms, recorded pool": share(recorded(rates, n_blocks, rng)),
            "false alarms, simulated": share(simulated(logs, n_blocks, rng, 0.0, N_SIMULATED)),
            **{
                f"loss of {loss:.0%} found, simulated": share(simulated(logs, n_blocks, rng, loss, N_SIMULATED // 10))
                for loss in LOSSES
            },
        }
    return out


def real(best: Path, budget: str) -> dict[str, Any]:
    """One real recheck; its answer and its exit code."""
    argv = [sys.executable, "-m", "autotune", "recheck", str(best), "--budget", budget, "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 5):
        sys.exit(done.stdout + done.stderr)
    said = json.loads(done.stdout)
    print(done.returncode, said["sentence"], flush=True)
    return {"exit_code": done.returncode, **{k: said[k] for k in ("sentence", "then", "now", "blocks", "notes")}}


def on_this_machine(run: Path, n: int, budget: str) -> dict[str, Any]:
    """n rechecks of a copy of RUN/best as it is, and one with the winner slowed down."""
    with tempfile.TemporaryDirectory(prefix="recheck-") as tmp:
        best = Path(tmp) / "best"
        shutil.copytree(run / "best", best)
        same = [real(best, budget) for _ in range(n)]
        winner = json.loads((best / "winner.json").read_text())
        package = os.pathsep.join((str(INJECT), str(Path(__file__).parents[2])))
        winner["env"] |= {"SLOWDOWN_FRAC": str(SLOWDOWN_FRAC), "PYTHONPATH": package}
        (best / "winner.json").write_text(json.dumps(winner))
        return {"a_a": same, "alarms": sum(r["exit_code"] == 5 for r in same), "injected": real(best, budget)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pool", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--n", type=int, default=5)
    parser.add_argument("--budget", default="4m")
    given = parser.parse_args()
    pool = json.loads(given.pool.read_text())
    found: dict[str, Any] = {
        "pool": given.pool.name,
        "machine": pool["machine"],
        "drawn": from_pool(pool["images_per_s"]),
    }
    print(json.dumps(found["drawn"], indent=1))
    if given.run:
        found["real"] = {"machine": machine(), "run": given.run.resolve().name}
        found["real"] |= on_this_machine(given.run.resolve(), given.n, given.budget)
    if given.out:
        save(given.out, found)


if __name__ == "__main__":
    main()
