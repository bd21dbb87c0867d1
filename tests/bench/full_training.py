"""python tests/bench/full_training.py RUN: do whole epochs of full training agree with the receipt of RUN?

Run by hand. Plain `yolo train` with the run's stock arguments against `bash RUN/best/launch.sh`, interleaved; both
without validation, checkpoints and warm-up epochs (in which `accumulate` grows), 14 epochs asked so that mosaic stays
open for the first four, stopped after three or four. The first epoch is left out: it carries the start. Prints images/s
of whole epochs from Ultralytics' results.csv.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from math import exp, log
from pathlib import Path
from statistics import fmean

EXTRA = ["epochs=14", "val=False", "save=False", "plots=False", "warmup_epochs=0"]
STOCK_KEYS = ("model", "data", "imgsz", "batch", "device")


def times(folder: Path) -> list[float]:
    """Cumulative seconds at the end of each epoch so far."""
    found = list(folder.rglob("results.csv"))
    if not found:
        return []
    with found[0].open() as f:
        return [float(row["time"]) for row in csv.DictReader(f)]


def measure(argv: list[str], n_images: int, n_epochs: int) -> float:
    """Images a second over epochs 2..n of one fresh training, which is then stopped."""
    with tempfile.TemporaryDirectory(prefix="full-") as tmp:
        process = subprocess.Popen(
            [*argv, *EXTRA, f"project={tmp}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while len(ends := times(Path(tmp))) < n_epochs and process.poll() is None:
            time.sleep(0.5)
        os.killpg(process.pid, signal.SIGKILL)  # its folder goes with it: there is nothing to finish
        process.wait(30)
    epochs = [b - a for a, b in itertools.pairwise(ends)]
    print(argv[0], [round(n_images / s, 1) for s in epochs], flush=True)
    return n_images * len(epochs) / sum(epochs)


def main() -> None:
    run = Path(sys.argv[1]).resolve()
    info = json.loads((run / "run.json").read_text())
    n_images = json.loads((run / "trials" / "0000" / "result.json").read_text())["job"]["n_images"]
    stock = ["yolo", "train", *(f"{k}={info['train_args'][k]}" for k in STOCK_KEYS)]
    winner = ["bash", str(run / "best" / "launch.sh")]
    rates: dict[str, list[float]] = {"stock": [], "winner": []}
    data = Path(info["train_args"]["data"]).parent
    assert data.name.startswith("demo-v1"), "deletes .npy files: only for runs on the demo set"
    for _ in range(2):
        # Images that the winner's cache=disk left beside the dataset would make the stock run read them too.
        for npy in data.rglob("*.npy"):
            npy.unlink()
        rates["stock"].append(measure(stock, n_images, 3))
        rates["winner"].append(measure(winner, n_images, 4))
    mean = {name: exp(fmean(map(log, values))) for name, values in rates.items()}
    print(f"stock {mean['stock']:.1f}, winner {mean['winner']:.1f} img/s: {mean['winner'] / mean['stock']:.2f}x")


if __name__ == "__main__":
    main()
