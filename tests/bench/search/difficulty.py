"""python tests/bench/search/difficulty.py TABLE...: how hard is it to find the best of a recorded table?

A table on which random search is within 2 % after 12 trials in over half of the studies says nothing of a strategy.
"""

from __future__ import annotations

import argparse
import sys
from math import comb
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).parents[3]))
sys.path.insert(0, str(Path(__file__).parent))

from estimated import estimate

from autotune.recording import read_recording
from autotune.search.proposals import key_of

FRACS = (0.10, 0.05, 0.02, 0.01)
DRAWS = (5, 10, 12, 20, 30, 40)
MOST = 0.5
"""Of random studies within 2 % after 12 trials."""


def random_curve(n_cells: int, n_good: int, draws: int) -> float:
    """Probability that one of `draws` different cells, drawn at random, is good (hypergeometric)."""
    return 1 - comb(n_cells - n_good, draws) / comb(n_cells, draws) if draws <= n_cells else 1.0


def describe(path: str) -> str:
    """The difficulty of one table, in lines."""
    recording = read_recording(path)
    found = estimate(recording)
    configs = {key_of(params): params for params in recording.configs}
    known = found.images_per_s
    best, top = max(known.items(), key=lambda rated: rated[1])
    n = len(known)
    good = {frac: sum(rate >= (1 - frac) * top for rate in known.values()) for frac in FRACS}
    baseline = known[key_of(recording.baseline)]
    times = [r.result.took_s for runs in recording.cells.values() for r in runs]
    changes = ", ".join(f"{k}={v}" for k, v in configs[best].items() if v != recording.baseline.get(k))
    at_12 = random_curve(n, good[0.02], min(12, n))
    return "\n".join(
        [
            f"### {recording.name}",
            f"{n} configurations measured of {len(configs)}, {len(times)} runs of {fmean(times):.1f} s; fewest runs a "
            f"cell: {min(map(len, recording.cells.values()))}",
            f"best {top:.1f} images/s with {changes}; the baseline {baseline:.1f} ({baseline / top:.0%}), the median "
            f"{sorted(known.values())[n // 2] / top:.0%} of it",
            f"sd of a run {found.noise_frac:.1%}, of interactions {found.pairs_frac:.1%}, of what a configuration has "
            f"beyond them {found.own_frac:.1%}; the best is known to {found.sd_frac[best]:.1%} (sd)",
            "within " + ", ".join(f"{frac:.0%}: {k} ({k / n:.1%})" for frac, k in good.items()),
            "random is within 2 % after "
            + ", ".join(f"{k}: {random_curve(n, good[0.02], k):.0%}" for k in DRAWS if k <= n)
            + " trials",
            "hard enough for the goal" if at_12 <= MOST else "too easy for the goal",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="+")
    print("\n\n".join(describe(path) for path in parser.parse_args().tables))


if __name__ == "__main__":
    main()
