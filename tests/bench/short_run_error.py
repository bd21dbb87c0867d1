"""python tests/bench/short_run_error.py OUT.json [--repeats 4] [--epochs 4]: is a segment's epoch a real epoch's time?

Run by hand. Predicted epoch time (images of the dataset / segment's images per second) against whole epochs of full
training: plain `yolo train`, or `autotune train` for cells with patches (MEASURING 7). Cells in shuffled order, a trial
and a full training of each per repeat. Beside it the naive estimator (first 50 steps, images consumed) from the same
trial's raw columns, and the noise floor: how far two full trainings of one cell are apart.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
from math import log
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from cells import TINY, Cell, full_training, job, machine, save, trial
from scipy.stats import t as student

from autotune.contract import RankRecord, TrialDir, read_json
from autotune.run.dataset import DatasetView
from autotune.run.statistics import quantile

HD = {"imgsz": 64, "batch": 4}
CELLS = (
    Cell("stock"),
    Cell("batch 64", args={"batch": 64}),
    Cell("imgsz 64, batch 32", args={"imgsz": 64, "batch": 32}),
    Cell("96 images (two steps of buffer)", "toy", {"imgsz": 64, "batch": 4}),
    Cell("cache ram", args={"cache": "ram"}),
    Cell("2 threads, channels_last, batch 64", args={"batch": 64}, patches={"torch_threads": 2, "channels_last": True}),
    Cell("1 worker", patches={"workers": 1}),
    Cell("compile, tiny model, 32 px", args={"model": str(TINY), "imgsz": 32, "batch": 16, "compile": True}),
    Cell("loader-bound: hd", "hd", {**HD, "model": str(TINY)}),
    Cell("loader-bound: hd, yolo11n", "hd", dict(HD)),
    Cell("loader-bound: hd, 1 worker", "hd", {**HD, "model": str(TINY)}, {"workers": 1}),
    Cell("loader-bound: hd, 2 workers", "hd", {**HD, "model": str(TINY)}, {"workers": 2}),
)
NAIVE_STEPS = 50


def naive(folder: Path) -> float:
    """Images a second that the first steps consumed: what a tuner without our rules would report."""
    steps = read_json(TrialDir(folder).rank(0), RankRecord).steps
    n = min(NAIVE_STEPS, len(steps.end_s) - 1)  # not the first step: no tuner is that naive
    return sum(steps.images[1 : n + 1]) / sum(steps.step_s[1 : n + 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    runs: list[dict[str, Any]] = []
    cells = [c for c in CELLS if given.only in c.name]
    with tempfile.TemporaryDirectory(prefix="short-run-") as tmp:
        views = {}
        for repeat in range(given.repeats):
            for cell in random.Random(repeat).sample(cells, len(cells)):
                if cell.dataset not in views:
                    views[cell.dataset] = DatasetView(job(cell)["data"], "detect", Path(tmp) / cell.dataset)
                folder = Path(tmp) / f"{len(runs)}"

                def segment(cell: Cell = cell, folder: Path = folder) -> dict[str, Any]:
                    result = trial(cell, views[cell.dataset].path(cell.args.get("cache", False)), folder)
                    if result.images_per_s is None:
                        sys.exit(f"{cell.name}: {result.outcome}: {result.error}\n" + "\n".join(result.log_tail))
                    n_images = result.job["n_images"]
                    return {"predicted_s": n_images / result.images_per_s, "naive_s": n_images / naive(folder),
                            "outcome": result.outcome.value, "wait_frac": result.wait_frac,
                            "took_s": result.took_s}  # fmt: skip

                def whole(cell: Cell = cell) -> dict[str, Any]:
                    return {"epochs_s": full_training(cell, given.epochs)}

                run: dict[str, Any] = {"cell": cell.name, "repeat": repeat}
                for part in (segment, whole) if repeat % 2 == 0 else (whole, segment):  # drift hits both alike
                    run |= part()
                runs.append(run)
                error = fmean(run["epochs_s"]) / run["predicted_s"] - 1
                print(f"{repeat} {cell.name}: predicted {run['predicted_s']:.2f} s, whole epochs "
                      f"{[round(s, 2) for s in run['epochs_s']]}, {error:+.1%}", flush=True)  # fmt: skip
                save(given.out, {"machine": machine(), "runs": runs})
    figures = summary(runs)
    save(given.out, {"machine": machine(), "summary": figures, "runs": runs})
    print(*(f"{k}: {v}" for k, v in figures.items()), sep="\n")


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Errors per cell (ratio of the geometric means of its repeats) and over the cells."""
    cells = []
    floor = []
    for name in dict.fromkeys(r["cell"] for r in runs):
        mine = [r for r in runs if r["cell"] == name]
        real = [log(fmean(r["epochs_s"])) for r in mine]
        ours = [log(r["predicted_s"]) for r in mine]
        plain = [log(r["naive_s"]) for r in mine]
        # > 0: the segment promised a shorter epoch than the real one took, so it overstated the speed.
        cells.append({"cell": name, "error": fmean(real) - fmean(ours), "naive_error": fmean(real) - fmean(plain),
                      "sd_real": stdev(real) if len(real) > 1 else None,
                      "sd_ours": stdev(ours) if len(ours) > 1 else None,
                      "wait_frac": median(r["wait_frac"] for r in mine)})  # fmt: skip
        floor += [abs(a - b) for a, b in itertools.combinations(real, 2)]
    errors = sorted(abs(c["error"]) for c in cells)
    signed = [c["error"] for c in cells]
    half = student.ppf(0.975, len(signed) - 1) * stdev(signed) / len(signed) ** 0.5 if len(signed) > 2 else None
    return {
        "n_cells": len(cells),
        "median_abs_error": median(errors),
        "p95_abs_error": quantile(errors, 0.95),
        "bias": fmean(signed),
        "bias_half_width": half,
        "naive_median_abs_error": median(abs(c["naive_error"]) for c in cells),
        "naive_bias": fmean(c["naive_error"] for c in cells),
        "noise_floor_median": median(floor) if floor else None,
        "n_loader_bound": sum(c["wait_frac"] > 0.4 for c in cells),
        "cells": cells,
    }


if __name__ == "__main__":
    main()
