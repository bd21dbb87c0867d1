"""python tests/bench/setup.py [BLOCKS] [JSON]: what does it take from process start to the first step, by phase?

Run by hand, on an idle machine. Plain `yolo train` with its default arguments (plots, validation and checkpoints on), a
cold trial and a warm trial of ours, one of each a block in shuffled order, after a block that is not counted (it scans
the labels and starts the preloaded parent). The total is seen from outside, by a reader that looks every 5 ms for the
first finished step; the phases are what the processes say of themselves. The trials then measure as always, so the
same blocks give the paired ratio of warm to cold throughput.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from math import exp, log
from pathlib import Path
from statistics import fmean, stdev

from cells import machine
from scipy.stats import t as student

from autotune.contract import SegmentSettings, TrialDir
from autotune.run.dataset import DatasetView
from autotune.run.demo import demo_dataset
from autotune.run.preloaded import Preloaded
from autotune.run.trial import run_trial
from tests.run.trials import spec

ARGS = {"model": "yolo11n.yaml", "imgsz": 128, "batch": 16, "epochs": 100, "device": "cpu"}
SEGMENT = SegmentSettings(warmup_s=1.0, warmup_steps=6, warmup_cap_s=10.0, measure_s=6.0)
PHASES = ("import", "build", "first_step")
# What the `yolo` command runs, with a clock at the points where our worker has one.
PLAIN = """
import time; marks = {"began": time.perf_counter()}
import json, os, sys
from ultralytics.cfg import entrypoint
import ultralytics.models.yolo.detect
from ultralytics.utils.callbacks.base import default_callbacks
marks["import"] = time.perf_counter()
out = os.environ["MARKS"]
def first_step(trainer):
    marks["first_step"] = time.perf_counter()
    with open(out + ".tmp", "w") as f:
        json.dump(marks, f)
    os.rename(out + ".tmp", out)
    os._exit(0)
default_callbacks["on_train_start"].append(lambda trainer: marks.update(build=time.perf_counter()))
default_callbacks["on_train_batch_end"].append(first_step)
sys.argv[0] = "yolo"
entrypoint()
"""


class FirstStep(threading.Thread):
    """Seconds from `start()` until the file holds a finished step."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path, self.began, self.seconds = path, time.perf_counter(), float("nan")

    def run(self) -> None:
        while time.perf_counter() - self.began < 300:
            if self.path.exists() and any(not line.startswith("#") for line in self.path.read_text().splitlines()):
                self.seconds = time.perf_counter() - self.began
                return
            time.sleep(0.005)


def plain(data: str, folder: Path) -> dict[str, float]:
    folder.mkdir(parents=True)
    env = {**os.environ, "YOLO_CONFIG_DIR": str(folder.parent / ".yolo"), "YOLO_OFFLINE": "true", "TMPDIR": str(folder)}
    env |= {"MARKS": str(folder / "marks"), "CUDA_VISIBLE_DEVICES": "", "YOLO_AUTOINSTALL": "false"}
    words = ["train", f"data={data}", f"project={folder}", *(f"{k}={v}" for k, v in ARGS.items())]
    reader = FirstStep(folder / "marks")
    reader.start()
    with (folder / "log.txt").open("ab") as out:
        subprocess.run([sys.executable, "-c", PLAIN, *words], env=env, cwd=folder, stdout=out, stderr=out, check=True)
    reader.join()
    marks = json.loads((folder / "marks").read_text())
    return {
        "total": reader.seconds,
        "import": marks["import"] - marks["began"],
        "build": marks["build"] - marks["import"],
        "first_step": marks["first_step"] - marks["build"],
    }


def ours(data: str, folder: Path, preloaded: Preloaded | None) -> dict[str, float]:
    directory = TrialDir(folder)
    reader = FirstStep(directory.stream(0))
    reader.start()
    result = run_trial(spec(data, segment=SEGMENT, **ARGS), directory, started_s=0.0, preloaded=preloaded)
    reader.join()
    assert result.images_per_s, (result.error, result.log_tail)
    assert result.warm == (preloaded is not None)
    phases = {name: result.phases_s[name] for name in PHASES}
    return {"total": reader.seconds, **phases, "images_per_s": result.images_per_s}


def ratio(a: list[float], b: list[float]) -> tuple[float, float, float]:
    """Geometric mean of a / b, block by block, and its 95 % interval (Student t on the logarithms)."""
    logs = [log(x / y) for x, y in zip(a, b, strict=True)]
    half = student.ppf(0.975, len(logs) - 1) * stdev(logs) / len(logs) ** 0.5 if len(logs) > 1 else float("nan")
    mean = fmean(logs)
    return exp(mean), exp(mean - half), exp(mean + half)


def main() -> None:
    n_blocks = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    runs: dict[str, list[dict[str, float]]] = {"plain": [], "cold": [], "warm": []}
    with tempfile.TemporaryDirectory(prefix="setup-") as tmp, Preloaded() as preloaded:
        home = Path(tmp)
        data = demo_dataset(home, n_train=320, n_val=32)
        with DatasetView(str(data), "detect", home / "view") as view:
            start = {
                "plain": lambda folder: plain(str(data), folder),
                "cold": lambda folder: ours(view.path(False), folder, None),
                "warm": lambda folder: ours(view.path(False), folder, preloaded),
            }
            for block in range(-1, n_blocks):
                for name in random.sample(list(start), 3):
                    seen = start[name](home / "run" / "trials" / f"{name}{block}")
                    print(block, name, {k: round(v, 2) for k, v in seen.items()}, flush=True)
                    if block >= 0:
                        runs[name].append(seen)
    print(f"\n| seconds | {' | '.join((*PHASES, 'start to first step'))} |\n|---|---|---|---|---|")
    for name, seen in runs.items():
        print(f"| {name} | {' | '.join(f'{fmean(r[c] for r in seen):.2f}' for c in (*PHASES, 'total'))} |")
    total = {name: [r["total"] for r in seen] for name, seen in runs.items()}
    rate = {name: [r["images_per_s"] for r in runs[name]] for name in ("cold", "warm")}
    figures = {
        "start to first step, warm / plain": ratio(total["warm"], total["plain"]),
        "start to first step, cold / plain": ratio(total["cold"], total["plain"]),
        "throughput, warm / cold": ratio(rate["warm"], rate["cold"]),
    }
    for name, (value, low, high) in figures.items():
        print(f"{name}: {value:.3f} (95 % CI {low:.3f}-{high:.3f}, {n_blocks} blocks)")
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(
            json.dumps({"machine": machine(), "args": ARGS, "runs": runs, "figures": figures}, indent=1)
        )


if __name__ == "__main__":
    main()
