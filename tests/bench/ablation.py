"""python tests/bench/ablation.py OUT.json [--blocks 3]: what does each knob of cpu.yaml move, one at a time?

Run by hand. Fresh processes, all configurations in shuffled order in every block; the figure is the geometric mean over
blocks of the ratio to the reference run of the same block. Two references: the stock baseline, and all knobs that win.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from math import exp, log
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from autotune.contract import Deadlines, Params, SegmentSettings, TrialDir, TrialSpec
from autotune.run.dataset import DatasetView
from autotune.run.demo import demo_dataset
from autotune.run.trial import run_trial

STOCK: Params = {
    "torch_threads": None,
    "batch": 16,
    "channels_last": None,
    "workers": None,
    "prefetch_factor": None,
    "cache": False,
}
TUNED: Params = {**STOCK, "torch_threads": 2, "batch": 64, "channels_last": True}
CONFIGS: dict[str, tuple[str, Params]] = {
    "stock": ("stock", STOCK),
    "stock, torch_threads 2": ("stock", {**STOCK, "torch_threads": 2}),
    "stock, channels_last": ("stock", {**STOCK, "channels_last": True}),
    "stock, batch 8": ("stock", {**STOCK, "batch": 8}),
    "stock, batch 32": ("stock", {**STOCK, "batch": 32}),
    "stock, batch 64": ("stock", {**STOCK, "batch": 64}),
    "stock, workers 1": ("stock", {**STOCK, "workers": 1}),
    "stock, workers 2": ("stock", {**STOCK, "workers": 2}),
    "stock, workers 1, prefetch 2": ("stock", {**STOCK, "workers": 1, "prefetch_factor": 2}),
    "stock, workers 1, prefetch 8": ("stock", {**STOCK, "workers": 1, "prefetch_factor": 8}),
    "stock, cache ram": ("stock", {**STOCK, "cache": "ram"}),
    "stock, cache disk": ("stock", {**STOCK, "cache": "disk"}),
    "tuned": ("tuned", TUNED),
    "tuned, torch_threads 1": ("tuned", {**TUNED, "torch_threads": None}),
    "tuned, channels_last off": ("tuned", {**TUNED, "channels_last": None}),
    "tuned, batch 16": ("tuned", {**TUNED, "batch": 16}),
    "tuned, workers 1": ("tuned", {**TUNED, "workers": 1}),
    "tuned, workers 2": ("tuned", {**TUNED, "workers": 2}),
    "tuned, cache ram": ("tuned", {**TUNED, "cache": "ram"}),
    "tuned, cache disk": ("tuned", {**TUNED, "cache": "disk"}),
}
SEGMENT = SegmentSettings(
    warmup_steps=4,
    warmup_s=1.5,
    warmup_cap_s=5.0,
    measure_s=3.0,
    measure_steps=6,
    measure_cap_s=15.0,
    ci_target_frac=0.08,
)


def spec(params: Params, data: str, number: int) -> TrialSpec:
    patches = {k: v for k, v in params.items() if k not in ("batch", "cache") and v is not None}
    args: dict[str, Any] = {
        "task": "detect", "mode": "train", "model": "yolo11n.yaml", "data": data, "imgsz": 128, "epochs": 100,
        "device": "cpu",
        "batch": params["batch"], "cache": params["cache"], "plots": False, "val": False, "save": False,
        "warmup_epochs": 0, "save_dir": "yolo", "exist_ok": True, "optimizer": "AdamW", "lr0": 0.001, "momentum": 0.9,
    }  # fmt: skip
    return TrialSpec(
        number=number, role="trial", backend="yolo", task="detect", params=params, changes={}, train_args=args,
        patches=patches, segment=SEGMENT, deadlines=Deadlines(total_s=200.0),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--blocks", type=int, default=3)
    given = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="ablation-") as tmp:
        view = DatasetView(str(demo_dataset()), "detect", Path(tmp) / "view")
        for block in range(given.blocks):
            names = list(CONFIGS)
            random.Random(block).shuffle(names)
            for name in names:
                _, params = CONFIGS[name]
                number = len(runs)
                result = run_trial(
                    spec(params, view.path(params["cache"]), number), TrialDir(Path(tmp) / f"{number}"), started_s=0.0
                )
                runs.append(
                    {"block": block, "name": name, "images_per_s": result.images_per_s, "phases_s": result.phases_s}
                )
                given.out.write_text(json.dumps(runs, indent=1))
    rate = {(r["block"], r["name"]): r["images_per_s"] for r in runs}
    print("| configuration | img/s | x reference | sd of a run |\n|---|---|---|---|")
    for name, (reference, _) in CONFIGS.items():
        rates = [rate[b, name] for b in range(given.blocks)]
        ratios = [log(rate[b, name] / rate[b, reference]) for b in range(given.blocks)]
        spread = f"{stdev(log(r) for r in rates):.1%}" if len(rates) > 1 else "-"
        print(f"| {name} | {exp(fmean(map(log, rates))):.1f} | {exp(fmean(ratios)):.2f} | {spread} |")


if __name__ == "__main__":
    main()
