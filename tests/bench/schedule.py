"""python tests/bench/schedule.py OUT.json [--repeats 2] [--only REGEX]: how long will the whole training take?

Run by hand, on an idle machine (about 20 minutes on 2 cores with two repeats). Predicted T(job), from one trial as the
finalists run and one probe `epoch_end`, against a complete short training from process start to exit, with its
validations, checkpoints, warm-up epochs, closed mosaic, final evaluation and plots: plain `yolo train`, or `autotune
train` for cells with patches (MEASURING 7). The epochs alone, by Ultralytics' own clock (results.csv), are compared as
well: what no trial sees, such as the exit of the process, is nothing to a job of hours, and much to half a minute.

Cells in shuffled order; in each repeat prediction and training of a cell take turns in going first. Beside the errors
stand the noise floor, which is how far two complete trainings of one cell are apart, and the estimate that knows only
start and steps.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from functools import cache
from math import log
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import cells
import psutil
from cells import TINY, Cell, epoch_ends, job, machine, save, trial_spec
from scipy.stats import t as student

from autotune.contract import TrialDir, TrialResult, Winner, write_json
from autotune.question import segment_settings
from autotune.run.dataset import DatasetView
from autotune.run.demo import cache_home, demo_dataset
from autotune.run.page_cache import warm_page_cache
from autotune.run.statistics import quantile
from autotune.run.trial import run_trial
from autotune.search.job_time import Ends, with_job

SEGMENT_S = 180.0
"""Segments are as long as those of a search with this budget."""
CELLS = (
    Cell("stock", args={"epochs": 6, "close_mosaic": 2}),
    Cell("batch 64", args={"batch": 64, "epochs": 6, "close_mosaic": 2}),
    Cell("batch 4, toy: the warm-up's optimizer steps", "toy", {"batch": 4, "epochs": 6, "close_mosaic": 2}),
    Cell("1 worker", args={"epochs": 6, "close_mosaic": 3}, patches={"workers": 1}),
    Cell("2 threads", args={"epochs": 6, "close_mosaic": 2}, patches={"torch_threads": 2}),
    Cell("cache ram, no plots", args={"cache": "ram", "epochs": 5, "close_mosaic": 2, "plots": False}),
    Cell("compile, tiny model, 32 px", args={"model": str(TINY), "imgsz": 32, "compile": True, "epochs": 6,
                                             "close_mosaic": 2}),
    Cell("hd, loader-bound, few to validate", "hd", {"model": str(TINY), "imgsz": 64, "batch": 4, "epochs": 4,
                                                     "close_mosaic": 2}),
    Cell("imgsz 192, never opens its mosaic", args={"imgsz": 192, "epochs": 4, "close_mosaic": 10}),
    Cell("more to validate than to train", "valheavy", {"epochs": 5, "close_mosaic": 2}),
    Cell("neither val nor save", args={"epochs": 6, "close_mosaic": 0, "val": False, "save": False}),
)  # fmt: skip
stock_dataset = cells.dataset


def dataset(kind: str) -> Path:
    """cells.dataset, and `valheavy`: 96 images to train, 320 to validate."""
    if kind == "valheavy":
        return demo_dataset(cache_home() / "bench" / "valheavy", n_train=96, n_val=320)
    return stock_dataset(kind)


cells.dataset = dataset


@dataclass(frozen=True)
class Predicted:
    """Seconds of the whole job, of its start and steps alone, and what it took to find out."""

    job_s: float
    steps_only_s: float
    took_s: float
    trial: TrialResult
    probe: TrialResult


def predict(cell: Cell, view: DatasetView, folder: Path) -> Predicted:
    """One trial and one probe, each in a fresh process."""
    args, segment = job(cell), segment_settings("cpu", SEGMENT_S)
    spec = trial_spec(cell, str(view.path(args.get("cache", False))), segment=segment, env=compile_cache())
    began = time.monotonic()
    result = measured(cell, run_trial(spec, TrialDir(folder / "trial"), started_s=0.0))
    users = {key: args.get(key, True) for key in ("val", "save", "plots")}
    probing = replace(spec, role="probe", probe="epoch_end", train_args={**spec.train_args, **users})
    probe = measured(cell, run_trial(probing, TrialDir(folder / "probe"), started_s=0.0))
    took_s = time.monotonic() - began
    whole = with_job(result, result, None, Ends(baseline=result, of_baseline=probe, own=probe, own_trial=result))
    steps_only = with_job(result, result)
    assert whole.job_s is not None
    assert steps_only.job_s is not None
    return Predicted(whole.job_s, steps_only.job_s, took_s, whole, probe)


def measured(cell: Cell, result: TrialResult) -> TrialResult:
    """The result, if there is one."""
    if result.images_per_s is None or (result.probe and result.epoch_end is None):
        sys.exit(f"{cell.name}: {result.outcome}: {result.error}\n" + "\n".join(result.log_tail))
    return result


def epochs_s(result: TrialResult) -> float:
    """Seconds from the beginning of the first epoch to the last line of results.csv, which precedes a checkpoint."""
    terms = result.job_terms
    parts = ("mosaic_epochs_s", "closed_epochs_s", "val_s", "save_s", "epoch_end_s", "warmup_s", "compile_s")
    first_s = 0.0 if terms["compile_s"] else result.phases_s["first_step"] - (result.step_p50_s or 0.0)
    return sum(terms[part] or 0.0 for part in parts) + first_s - (terms["save_s"] or 0.0) / result.job["epochs"]


def whole_training(cell: Cell) -> tuple[float, float]:
    """Seconds of one complete training, from the start of its process to its exit; and of its epochs alone."""
    with tempfile.TemporaryDirectory(prefix="bench-schedule-") as tmp:
        env = {**os.environ, **compile_cache(), **as_a_trial(), "MPLBACKEND": "Agg"}
        if cell.patches:
            args = {**job(cell), "task": "detect", "mode": "train"}
            write_json(Path(tmp) / "winner.json", Winner(task="detect", train_args=args, patches=cell.patches))
            argv = [sys.executable, "-m", "autotune", "train", tmp]
            env["PYTHONPATH"] = str(Path(__file__).parents[2])
        else:
            argv = [str(Path(sys.executable).with_name("yolo")), "train", *(f"{k}={v}" for k, v in job(cell).items())]
        with (Path(tmp) / "log.txt").open("w") as out:
            began = time.monotonic()
            done = subprocess.run([*argv, f"project={tmp}/runs"], stdout=out, stderr=out, cwd=tmp, env=env, check=False)
            took_s = time.monotonic() - began
        if done.returncode != 0:
            sys.exit(f"{cell.name}: the training failed:\n{(Path(tmp) / 'log.txt').read_text()[-2000:]}")
        return took_s, epoch_ends(Path(tmp))[-1]


@cache
def as_a_trial() -> dict[str, str]:
    """No trackers, whose imports may take seconds, and no look for the internet: the same for both."""
    env = {"YOLO_CONFIG_DIR": str(cache_home() / "bench" / "config"), "YOLO_OFFLINE": "true"}
    off = "SETTINGS.update({k: False for k in INTEGRATIONS if k in SETTINGS})"
    code = f"from ultralytics.utils import SETTINGS; from autotune.worker.yolo import INTEGRATIONS; {off}"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **env}, check=True, stdout=subprocess.DEVNULL)
    return env


def compile_cache() -> dict[str, str]:
    """One for trials and trainings: all but the very first find it warm, as the user's job does after a search."""
    return {"TORCHINDUCTOR_CACHE_DIR": str(cache_home() / "bench" / "inductor")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", default="", help="regular expression of the cells' names")
    given = parser.parse_args()
    chosen = [c for c in CELLS if re.search(given.only, c.name)]
    runs: list[dict[str, Any]] = []
    began = time.monotonic()
    as_a_trial()
    with tempfile.TemporaryDirectory(prefix="schedule-") as tmp:
        views = {kind: DatasetView(dataset(kind), "detect", Path(tmp) / kind) for kind in {c.dataset for c in chosen}}
        for kind in views:  # as a search does, once: whoever came first would read from a cold disk
            warm_page_cache(str(dataset(kind)), "detect", free_ram_bytes=psutil.virtual_memory().available)
        for cell in (c for c in chosen if c.args.get("compile")):  # whoever came first would fill the compile cache
            predict(cell, views[cell.dataset], Path(tmp) / "first")
        for repeat in range(given.repeats):
            for cell in random.Random(repeat).sample(chosen, len(chosen)):
                folder = Path(tmp) / f"{len(runs)}"
                real = whole_training(cell) if repeat % 2 else None
                known = predict(cell, views[cell.dataset], folder)
                real_s, real_epochs_s = real or whole_training(cell)
                runs.append({"cell": cell.name, "repeat": repeat, "real_s": real_s, "predicted_s": known.job_s,
                             "real_epochs_s": real_epochs_s, "predicted_epochs_s": epochs_s(known.trial),
                             "steps_only_s": known.steps_only_s, "took_s": known.took_s,
                             "terms": known.trial.job_terms, "outcomes": [known.trial.outcome, known.probe.outcome],
                             "wait_frac": known.trial.wait_frac})  # fmt: skip
                whole, epochs = real_s / known.job_s - 1, real_epochs_s / epochs_s(known.trial) - 1
                print(f"{repeat} {cell.name}: predicted {known.job_s:.1f} s in {known.took_s:.0f} s, took {real_s:.1f} "
                      f"s, {whole:+.1%}; epochs took {real_epochs_s:.1f} s, {epochs:+.1%}", flush=True)  # fmt: skip
                save(given.out, {"machine": machine(), "runs": runs})
    figures = {**summary(runs), "elapsed_s": time.monotonic() - began}
    save(given.out, {"machine": machine(), "summary": figures, "runs": runs})
    print(*(f"{k}: {v}" for k, v in figures.items()), sep="\n")


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Errors per cell (ratio of the geometric means of its repeats) and over the cells; > 0: it took longer."""
    found, floor = [], []
    for name in dict.fromkeys(r["cell"] for r in runs):
        mine = [r for r in runs if r["cell"] == name]
        keys = ("real_s", "predicted_s", "steps_only_s", "real_epochs_s", "predicted_epochs_s")
        real, ours, naive, real_epochs, our_epochs = ([log(r[key]) for r in mine] for key in keys)
        found.append({"cell": name, "real_s": fmean(r["real_s"] for r in mine),
                      "error": fmean(real) - fmean(ours), "steps_only_error": fmean(real) - fmean(naive),
                      "epochs_error": fmean(real_epochs) - fmean(our_epochs),
                      "sd_real": stdev(real) if len(real) > 1 else None,
                      "sd_ours": stdev(ours) if len(ours) > 1 else None})  # fmt: skip
        floor += [abs(a - b) for a, b in itertools.combinations(real, 2)]
    signed = [c["error"] for c in found]
    errors = sorted(map(abs, signed))
    half = student.ppf(0.975, len(signed) - 1) * stdev(signed) / len(signed) ** 0.5 if len(signed) > 2 else None
    return {
        "n_cells": len(found),
        "median_abs_error": median(errors),
        "p95_abs_error": quantile(errors, 0.95),
        "bias": fmean(signed),
        "bias_half_width": half,
        "steps_only_median_abs_error": median(abs(c["steps_only_error"]) for c in found),
        "epochs_median_abs_error": median(abs(c["epochs_error"]) for c in found),
        "epochs_p95_abs_error": quantile(sorted(abs(c["epochs_error"]) for c in found), 0.95),
        "epochs_bias": fmean(c["epochs_error"] for c in found),
        "noise_floor_median": median(floor) if floor else None,
        "cells": found,
    }


if __name__ == "__main__":
    main()
