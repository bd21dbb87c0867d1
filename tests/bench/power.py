"""python tests/bench/power.py OUT.json [--blocks 12]: how small a slowdown does a verdict find, by number of blocks?

Run by hand. Fresh runs of one configuration and of the same with a sleep of 2, 3, 5 and 10 % in every step
(inject/sitecustomize.py), shuffled within blocks. For b blocks: the share of subsets of b recorded blocks in which the
verdict's interval leaves out 1 on the right side (subsets overlap, so the curve is smoother than it is certain).
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sys
import tempfile
from math import log
from pathlib import Path
from statistics import fmean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from aa_pool import CELL, SEGMENT
from cells import job, machine, save, trial

from autotune.run.dataset import DatasetView
from autotune.search.verdict import judge

SLOWDOWNS = (0.0, 0.02, 0.03, 0.05, 0.10)
SIZES = (3, 4, 5, 6, 8)
MOST_SUBSETS = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--blocks", type=int, default=12)
    given = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).parent / "inject")
    blocks: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="power-") as tmp:
        view = DatasetView(job(CELL)["data"], "detect", Path(tmp) / "view")
        for i in range(given.blocks):
            block: dict[str, float] = {}
            for frac in random.Random(i).sample(SLOWDOWNS, len(SLOWDOWNS)):
                folder = Path(tmp) / f"{i}-{frac}"
                result = trial(CELL, view.path(False), folder, segment=SEGMENT, env={"SLOWDOWN_FRAC": str(frac)})
                if result.images_per_s is None:
                    sys.exit(f"{result.outcome}: {result.error}")
                block[str(frac)] = result.images_per_s
            blocks.append(block)
            print(i, {k: round(v, 1) for k, v in block.items()}, flush=True)
            save(given.out, {"machine": machine(), "blocks": blocks})
    figures = {str(f): curve(blocks, str(f)) for f in SLOWDOWNS}
    save(given.out, {"machine": machine(), "cell": CELL.name, "summary": figures, "blocks": blocks})
    for frac, row in figures.items():
        print(frac, row)


def curve(blocks: list[dict[str, float]], slow: str) -> dict[str, Any]:
    """Measured slowdown; per number of blocks the share found, and the median effect that the verdict says it finds."""
    measured = fmean(log(b["0.0"] / b[slow]) for b in blocks)
    out: dict[str, Any] = {"measured_slowdown": measured}
    if slow == "0.0":
        return out
    rng = random.Random(0)
    for size in SIZES:
        subsets = list(itertools.combinations(blocks, size)) if size <= len(blocks) else []
        found, smallest = [], []
        for subset in rng.sample(subsets, min(MOST_SUBSETS, len(subsets))):
            # The slowed run plays the baseline, so that the plain one is the gain to be found.
            ratio = judge([{"baseline": 1 / b[slow], "best": 1 / b["0.0"]} for b in subset]).ratios["best"]
            found.append(ratio.ci95_lo is not None and ratio.ci95_lo > 1.0)
            smallest.append(ratio.smallest_effect_frac or 0.0)
        if found:
            out[f"{size} blocks"] = {"found": fmean(found), "says_it_can_find": median(smallest)}
    return out


if __name__ == "__main__":
    main()
