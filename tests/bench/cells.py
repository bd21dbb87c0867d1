"""What do the benchmarks measure on? Datasets, cells (configurations), a trial and a full training of a cell."""

from __future__ import annotations

import csv
import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from autotune.contract import Deadlines, Params, SegmentSettings, TrialDir, TrialResult, TrialSpec, Winner, write_json
from autotune.machine.facts import read_machine
from autotune.question import segment_settings
from autotune.run.demo import cache_home, demo_dataset
from autotune.run.trial import run_trial

TINY = Path(__file__).parents[1] / "models" / "tiny-detect.yaml"
BUDGET_S = 300.0
"""Segments are as long as those of the README's five-minute search."""


@dataclass(frozen=True)
class Cell:
    """One configuration; with patches its full training is `autotune train`, else plain `yolo train`."""

    name: str
    dataset: str = "vga"
    args: dict[str, Any] = field(default_factory=dict)
    patches: Params = field(default_factory=dict)


def dataset(kind: str) -> Path:
    """data.yaml of a set, drawn once: `vga`, `small`, `toy` 256, 128, 96 demo images, `hd` 200 of 1920x1080."""
    home = cache_home() / "bench"
    for left in home.rglob("*.npy"):  # of a training with cache=disk: plain YOLO reads them in any cache mode
        left.unlink()
    if kind == "vga":
        return demo_dataset(home / "vga", n_train=256, n_val=8)
    if kind == "small":
        return demo_dataset(home / "small", n_train=128, n_val=8)
    if kind == "toy":
        return demo_dataset(home / "toy", n_train=96, n_val=8)
    assert kind == "hd"
    out = home / "hd-v1" / "data.yaml"
    if out.exists():
        return out
    import cv2

    rng = np.random.default_rng(0)
    for split, n in (("train", 200), ("val", 4)):
        images, labels = out.parent / "images" / split, out.parent / "labels" / split
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        for i in range(n):
            noise = rng.normal(128, 30, (1080, 1920, 3)).clip(0, 255).astype(np.uint8)
            cv2.imwrite(
                str(images / f"{i:04d}.jpg"), cv2.GaussianBlur(noise, (5, 5), 0), [cv2.IMWRITE_JPEG_QUALITY, 90]
            )
            boxes = rng.uniform(0.2, 0.8, (5, 2))
            (labels / f"{i:04d}.txt").write_text(
                "".join(f"{k % 6} {x:.4f} {y:.4f} 0.1 0.1\n" for k, (x, y) in enumerate(boxes))
            )
    out.write_text(f"path: {out.parent}\ntrain: images/train\nval: images/val\nnames: [a, b, c, d, e, f]\n")
    return out


def job(cell: Cell) -> dict[str, Any]:
    """YOLO's arguments of the cell's full training."""
    return {
        "model": "yolo11n.yaml", "data": str(dataset(cell.dataset)), "imgsz": 128, "batch": 16, "epochs": 100,
        "device": "cpu", "optimizer": "AdamW", "lr0": 0.001, "momentum": 0.9, **cell.args,
    }  # fmt: skip


def trial_spec(
    cell: Cell, data: str, number: int = 0, segment: SegmentSettings | None = None, env: dict[str, str] | None = None
) -> TrialSpec:
    """A trial of the cell, as the search would run it."""
    args = {
        "task": "detect", "mode": "train", **job(cell), "data": data, "plots": False, "val": False, "save": False,
        "warmup_epochs": 0, "save_dir": "yolo", "exist_ok": True,
    }  # fmt: skip
    return TrialSpec(
        number=number, role="finalist", backend="yolo", task="detect", params=dict(cell.patches), changes={},
        train_args=args, patches=cell.patches, env=env or {}, segment=segment or segment_settings("cpu", BUDGET_S),
        deadlines=Deadlines(first_step_s=900.0, total_s=1200.0),
    )  # fmt: skip


def trial(cell: Cell, data: str, folder: Path, **kwargs: Any) -> TrialResult:
    """One fresh trial."""
    return run_trial(trial_spec(cell, data, **kwargs), TrialDir(folder), started_s=0.0)


def full_training(cell: Cell, n_epochs: int, extra: tuple[str, ...] = ()) -> list[float]:
    """Seconds of whole epochs 2..n of one fresh full training, which is stopped then; the first carries the start.

    Without Ultralytics' three warm-up epochs, in which `accumulate` grows from 1: of a long training they are a trifle,
    of the first four epochs they would be most.
    """
    overrides = ["val=False", "save=False", "plots=False", "warmup_epochs=0", *extra]
    with tempfile.TemporaryDirectory(prefix="bench-full-") as tmp:
        env = {
            **os.environ,
            "YOLO_CONFIG_DIR": f"{tmp}/config",
            "TORCHINDUCTOR_CACHE_DIR": str(cache_home() / "inductor"),
        }
        if cell.patches:
            winner = Winner(
                task="detect", train_args={**job(cell), "task": "detect", "mode": "train"}, patches=cell.patches
            )
            write_json(Path(tmp) / "winner.json", winner)
            argv = [sys.executable, "-m", "autotune", "train", tmp]
            env["PYTHONPATH"] = str(Path(__file__).parents[2])
        else:
            argv = [str(Path(sys.executable).with_name("yolo")), "train", *(f"{k}={v}" for k, v in job(cell).items())]
        with (Path(tmp) / "log.txt").open("w") as log:
            process = subprocess.Popen(
                [*argv, *overrides, f"project={tmp}/runs"],
                stdout=log,
                stderr=log,
                cwd=tmp,
                env=env,
                start_new_session=True,
            )
            while len(ends := epoch_ends(Path(tmp))) < n_epochs and process.poll() is None:
                time.sleep(0.5)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait(15)
        if len(ends) < n_epochs:
            sys.exit(f"{cell.name}: the full training ended early:\n{(Path(tmp) / 'log.txt').read_text()[-2000:]}")
    return [b - a for a, b in itertools.pairwise(ends[:n_epochs])]


def epoch_ends(folder: Path) -> list[float]:
    """Seconds at the end of each epoch so far, from Ultralytics' results.csv."""
    found = list(folder.rglob("results.csv"))
    if not found:
        return []
    with found[0].open() as f:
        return [float(row["time"]) for row in csv.DictReader(f)]


def machine() -> dict[str, Any]:
    """The machine a figure was made on."""
    m = read_machine()
    return {"cpu": m.cpu, "n_cores": m.n_cores, "versions": m.versions, "platform": platform.platform(),
            "date": time.strftime("%Y-%m-%d %H:%M")}  # fmt: skip


def save(out: Path, figures: dict[str, Any]) -> None:
    """Write what there is so far."""
    out.write_text(json.dumps(figures, indent=1) + "\n")
