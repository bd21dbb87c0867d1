"""python tests/bench/search/difficulty.py TABLE...: how hard is it to find the best of a recorded table?

A table on which random search is within 2 % after 12 trials in over half of the studies says nothing of a strategy.
"""

from __future__ import annotations

import argparse
import sys
from math import comb, log, sqrt
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).parents[3]))

from autotune.recording import Recording, read_recording

FRACS = (0.10, 0.05, 0.02, 0.01)
DRAWS = (5, 10, 12, 20, 30, 40)
MOST = 0.5
"""Of random studies within 2 % after 12 trials."""


def random_curve(n_cells: int, n_good: int, draws: int) -> float:
    """Probability that one of `draws` different cells, drawn at random, is good (hypergeometric)."""
    return 1 - comb(n_cells - n_good, draws) / comb(n_cells, draws) if draws <= n_cells else 1.0


def noise_of(recording: Recording) -> tuple[float, int]:
    """Standard deviation of the log of a run's rate, pooled over cells that ran more than once, and its df."""
    squares, df = 0.0, 0
    for runs in recording.cells.values():
        logs = [log(r.result.images_per_s) for r in runs if r.result.outcome.measured and r.result.images_per_s]
        squares += sum((y - fmean(logs)) ** 2 for y in logs)
        df += max(0, len(logs) - 1)
    return sqrt(squares / df) if df else float("nan"), df


def describe(path: str) -> str:
    """The difficulty of one table, in lines."""
    recording = read_recording(path)
    rates = {key: recording.truth(runs[0].result.params) for key, runs in recording.cells.items()}
    known = [rate for rate in rates.values() if rate is not None]
    best, top = recording.best()
    n, noise = len(known), noise_of(recording)
    good = {frac: sum(rate >= (1 - frac) * top for rate in known) for frac in FRACS}
    baseline = recording.truth(recording.baseline) or float("nan")
    times = [r.result.took_s for runs in recording.cells.values() for r in runs]
    changes = ", ".join(f"{k}={v}" for k, v in best.items() if v != recording.baseline.get(k))
    lines = [
        f"### {recording.name}",
        f"{n} configurations measured of {len(rates)}, {len(times)} runs of {fmean(times):.1f} s; fewest runs a cell: "
        f"{min(len(runs) for runs in recording.cells.values())}",
        f"best {top:.1f} images/s with {changes}; the baseline "
        f"{baseline:.1f} ({baseline / top:.0%}), the median {sorted(known)[n // 2] / top:.0%} of it",
        f"a run differs by {noise[0]:.1%} (sd, df {noise[1]}), a mean of two by {noise[0] / sqrt(2):.1%}",
        "within " + ", ".join(f"{frac:.0%}: {k} ({k / n:.1%})" for frac, k in good.items()),
        "random is within 2 % after "
        + ", ".join(f"{k}: {random_curve(n, good[0.02], k):.0%}" for k in DRAWS if k <= n)
        + " trials",
    ]
    at_12 = random_curve(n, good[0.02], min(12, n))
    lines.append("hard enough for the goal" if at_12 <= MOST else "too easy for the goal")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="+")
    print("\n\n".join(describe(path) for path in parser.parse_args().tables))


if __name__ == "__main__":
    main()
