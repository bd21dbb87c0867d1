"""python tests/bench/live.py OUT.json [--blocks 10] [--limit-s S]: does a used process measure as a fresh one does?

Run by hand. Of each kind of change a block has two configurations A and B, each measured fresh (forked by a preloaded
parent), and a launch that measures A, B and A again in one process (run/followers.py); the three in shuffled order.
Followers against the fresh runs of the same block give two ratios a block: of images per second, of the step's 10th
percentile, of the CPU seconds an image of all its processes (which neighbours move less), of the peak of memory, of the
seconds from the trial's begin to its first step, and of the whole trial. saved_s is what counts: three fresh trials
less a turn of three, outside of their segments, for each of the two followers. OUT.json is added to, so a run may be
cut into parts. Each ratio has its 95 % interval (Student t on the logarithms); two runs as fresh as each other say what
the noise is.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from dataclasses import replace
from math import log
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from cells import TINY, Cell, dataset, machine, save, trial_spec
from scipy.stats import t as student
from setup import ratio

from autotune.contract import RankRecord, RunDir, SegmentSettings, TrialResult, TrialSpec, read_json
from autotune.run.dataset import DatasetView
from autotune.run.followers import Part
from autotune.run.preloaded import Preloaded
from autotune.run.statistics import quantile
from autotune.run.trial import run_in_turn

SEGMENT = SegmentSettings(
    warmup_steps=4, warmup_s=0.5, warmup_cap_s=2.5, measure_s=1.5, measure_steps=8, measure_cap_s=3.0
)
SETUP = ("import", "build", "first_step")
MEASURES = ("images_per_s", "step_p10_s", "cpu_s_per_image", "peak_mem_bytes", "setup_s", "took_s")


def cell(
    batch: int = 16, workers: int = 0, cache: Any = False, prefetch: int | None = None, model: str = str(TINY)
) -> Cell:
    patches: dict[str, Any] = {"workers": workers} | ({"prefetch_factor": prefetch} if prefetch else {})
    return Cell("", "small", {"model": model, "imgsz": 64, "batch": batch, "nbs": 16, "cache": cache}, patches)


KINDS = {
    "nothing": (cell(), cell()),
    "batch": (cell(), cell(batch=32)),
    "batch of yolo11n": (cell(batch=4, model="yolo11n.yaml"), cell(batch=8, model="yolo11n.yaml")),
    "workers": (cell(), cell(workers=2)),
    "cache": (cell(), cell(cache="ram")),
    "prefetch": (cell(workers=2, prefetch=2), cell(workers=2, prefetch=8)),
    "batch, workers and cache": (cell(batch=8), cell(batch=32, workers=2, cache="ram")),
}


def seen(part: Part, result: TrialResult) -> dict[str, Any]:
    assert result.images_per_s, (result.error, result.log_tail)
    assert result.warm
    record = read_json(part.directory.rank(0), RankRecord)
    steps = sorted(record.steps.step_s[record.measured_from or 0 :])
    return {
        "images_per_s": result.images_per_s,
        "step_p10_s": quantile(steps, 0.1),
        "cpu_s_per_image": result.meanwhile.tree_cores / result.images_per_s
        if result.meanwhile and result.meanwhile.tree_cores
        else None,
        "wait_frac": result.wait_frac,
        "phases_s": result.phases_s,
        "peak_mem_bytes": result.peak_mem_bytes[0] if result.peak_mem_bytes else None,
        "setup_s": sum(result.phases_s[name] for name in SETUP),
        "took_s": result.took_s,
        "outcome": result.outcome.value,
        "load": os.getloadavg()[0],
    }


def block(kind: str, run: RunDir, view: DatasetView, preloaded: Preloaded) -> dict[str, Any]:
    """One of each, in shuffled order."""
    a, b = KINDS[kind]
    launches = [("fresh A", (a,)), ("fresh B", (b,)), ("turn", (a, b, a))]
    row: dict[str, Any] = {"kind": kind}
    for name, cells in random.sample(launches, 3):
        parts = []
        for each in cells:
            number = len(list(run.trials.glob("*"))) if run.trials.exists() else 0
            folder = run.trial(number)
            folder.path.mkdir(parents=True)
            spec: TrialSpec = trial_spec(each, view.path(each.args["cache"]), number, SEGMENT)
            parts.append(Part(replace(spec, role="trial"), folder))
        results = run_in_turn(parts, started_s=0.0, preloaded=preloaded)
        assert len(results) == len(parts), parts[len(results)].directory.log.read_text()[-2000:]
        row[name] = [seen(p, r) for p, r in zip(parts, results, strict=True)]
    return row


def pairs(row: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(follower, fresh) of a block."""
    _, b, a = row["turn"]
    return [(b, row["fresh B"][0]), (a, row["fresh A"][0])]


def compared(them: list[tuple[dict[str, Any], dict[str, Any]]], name: str) -> tuple[float, float, float] | None:
    """Ratio of one measure with its interval, over the pairs in which both are known."""
    known = [(x[name], y[name]) for x, y in them if x[name] and y[name]]
    return ratio([x for x, _ in known], [y for _, y in known]) if len(known) > 1 else None


def spread(them: list[tuple[dict[str, Any], dict[str, Any]]], name: str) -> float:
    """Standard deviation of the logarithm of one measure's ratio."""
    return stdev([log(x[name] / y[name]) for x, y in them if x[name] and y[name]])


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval (Student t)."""
    half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return fmean(values), fmean(values) - half, fmean(values) + half


def overhead_s(run: dict[str, Any]) -> float:
    """Seconds of a trial outside of its segment: start, build, first step, tearing down, exit."""
    return run["took_s"] - run["phases_s"]["warmup"] - run["phases_s"]["measure"]


def saved_s(row: dict[str, Any]) -> float:
    """Seconds that a follower saved: three fresh trials against the turn, whose tearing down is in it."""
    fresh = 2 * overhead_s(row["fresh A"][0]) + overhead_s(row["fresh B"][0])
    return (fresh - sum(overhead_s(run) for run in row["turn"])) / 2


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each kind and of all: the ratios follower / fresh, and the seconds that a follower saves."""
    out: dict[str, Any] = {}
    for kind in (*KINDS, "all"):
        mine = [p for r in rows if kind in (r["kind"], "all") for p in pairs(r)]
        if len(mine) < 4:  # two blocks
            continue
        figures: dict[str, Any] = {"n_pairs": len(mine)}
        for name in MEASURES:
            figures[name] = compared(mine, name)
        figures["fresh_took_s"] = fmean(y["took_s"] for _, y in mine)
        figures["setup_saved_s"] = interval([y["setup_s"] - x["setup_s"] for x, y in mine])
        figures["saved_s"] = interval([saved_s(r) for r in rows if kind in (r["kind"], "all")])
        out[kind] = figures
    # The floor: a fresh A against the first of the turn, which is as fresh. And A again against A, seconds apart.
    others = {
        "fresh against fresh": [(r["turn"][0], r["fresh A"][0]) for r in rows],
        "third of a turn against its first": [(r["turn"][2], r["turn"][0]) for r in rows],
    }
    for name, them in others.items():
        sd = {f"{m}_sd": spread(them, m) for m in ("images_per_s", "cpu_s_per_image")}
        out[name] = {"n_pairs": len(them)} | {m: compared(them, m) for m in MEASURES} | sd
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--blocks", type=int, default=10, help="of each kind, those in OUT.json included")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="no block begins after so many seconds")
    given = parser.parse_args()
    rows = json.loads(given.out.read_text())["rows"] if given.out.exists() else []
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="live-") as tmp,
        Preloaded() as preloaded,
        DatasetView(str(dataset("small")), "detect", Path(tmp) / "view") as view,
    ):
        longest_s = 0.0
        while time.monotonic() - began + longest_s < given.limit_s:
            counts = {kind: sum(r["kind"] == kind for r in rows) for kind in KINDS}
            kind = min(random.sample(list(KINDS), len(KINDS)), key=lambda k: counts[k])
            if counts[kind] >= given.blocks:
                break
            start_s = time.monotonic()
            rows.append(block(kind, RunDir(Path(tmp) / "run"), view, preloaded))
            longest_s = max(longest_s, time.monotonic() - start_s)
            rates = [f"{x['images_per_s']:.0f}/{y['images_per_s']:.0f}" for x, y in pairs(rows[-1])]
            print(kind, *rates, f"{time.monotonic() - start_s:.0f} s", flush=True)
            save(given.out, {"machine": machine(), "rows": rows})
    figures = summary(rows)
    save(given.out, {"machine": machine(), "summary": figures, "rows": rows})
    for kind, f in figures.items():
        print(kind, {k: [round(x, 3) for x in v] if isinstance(v, tuple) else v for k, v in f.items()})


if __name__ == "__main__":
    main()
