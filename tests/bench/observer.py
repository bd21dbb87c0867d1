"""python tests/bench/observer.py OUT.json [--pairs 6]: what do our hooks cost a step?

Run by hand. Two figures. Microseconds: every hook of ours is timed inside a training, over the step's time. Paired:
whole epochs of plain `yolo train` against whole epochs with our hooks on, fresh processes, interleaved.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from math import expm1, log
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from cells import Cell, epoch_ends, full_training, job, machine, save, trial_spec
from scipy.stats import t as student

from autotune.contract import SegmentSettings, TrialDir

CELL = Cell("imgsz 64, batch 8", args={"imgsz": 64, "batch": 8})
N_EPOCHS = 6
ENDLESS = SegmentSettings(warmup_cap_s=0.5, measure_s=1e6, measure_cap_s=1e6)


class Meter:
    """Seconds inside our hooks; a hook within a hook counts once."""

    def __init__(self) -> None:
        self.total_s = 0.0
        self.depth = 0

    def wrap(self, owner: Any, name: str) -> None:
        """Time a method of this object from now on."""
        inner: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.inside():
                return inner(*args, **kwargs)

        setattr(owner, name, timed)

    def inside(self) -> AbstractContextManager[Any]:
        """Time a block."""
        return nullcontext() if self.depth else _Span(self)


class _Span:
    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def __enter__(self) -> None:
        self.meter.depth += 1
        self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.meter.total_s += time.perf_counter() - self.began
        self.meter.depth -= 1


def child(folder: str, metered: bool) -> None:
    """Train with our hooks until N_EPOCHS whole epochs are over; prints microseconds per step of hook and step."""
    from autotune.worker.recorder import Recorder
    from autotune.worker.yolo import Yolo

    spec = replace(
        trial_spec(CELL, "", segment=ENDLESS), train_args=json.loads((Path(folder) / "args.json").read_text())
    )
    recorder = Recorder(spec, TrialDir(Path(folder)))
    backend = Yolo(recorder)
    backend.build(spec)
    meter = Meter()
    trainer = backend.trainer
    if metered:
        meter.wrap(trainer._clock, "batch_start")
        meter.wrap(trainer._clock, "begin")
        meter.wrap(trainer._clock, "end")
        meter.wrap(trainer, "_on_batch_end")
    n_steps: list[int] = []

    def stop(_: Any) -> None:
        n_steps.append(len(recorder.segment.steps.end_s))
        if len(n_steps) == N_EPOCHS:
            steps = recorder.segment.steps.step_s[n_steps[0] :]
            figures = {"hooks_us": 1e6 * meter.total_s / n_steps[-1], "step_us": 1e6 * median(steps)}
            (Path(folder) / "figures.json").write_text(json.dumps(figures))
            os._exit(0)

    trainer.add_callback("on_fit_epoch_end", stop)
    backend.train(recorder)


def with_hooks(metered: bool) -> tuple[list[float], dict[str, float]]:
    """Seconds of whole epochs 2..n with our hooks, and the figures of the child."""
    with tempfile.TemporaryDirectory(prefix="observer-") as tmp:
        args = {**job(CELL), "task": "detect", "mode": "train", "val": False, "save": False, "plots": False,
                "warmup_epochs": 0, "project": f"{tmp}/runs"}  # fmt: skip
        (Path(tmp) / "args.json").write_text(json.dumps(args))
        env = {**os.environ, "YOLO_CONFIG_DIR": f"{tmp}/config", "YOLO_OFFLINE": "true"}
        done = subprocess.run(
            [sys.executable, __file__, "--child", tmp, *(["--metered"] if metered else [])],
            env=env, cwd=tmp, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if not (Path(tmp) / "figures.json").exists():
            sys.exit(done.stderr[-2000:])
        ends = epoch_ends(Path(tmp))
        return [b - a for a, b in itertools.pairwise(ends)], json.loads((Path(tmp) / "figures.json").read_text())


def summary(figures: dict[str, float], pairs: list[dict[str, float]]) -> dict[str, Any]:
    """Hooks over step, and the paired share with its 95 % interval (Student's t on the logs; None for one pair)."""
    logs = [log(p["hooks"] / p["plain"]) for p in pairs]
    half = student.ppf(0.975, len(logs) - 1) * stdev(logs) / len(logs) ** 0.5 if len(logs) > 1 else None
    return {
        **figures,
        "hooks_frac": figures["hooks_us"] / figures["step_us"],
        "paired_frac": expm1(fmean(logs)),
        "paired_ci95": [expm1(fmean(logs) - half), expm1(fmean(logs) + half)] if half is not None else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--child")
    parser.add_argument("--metered", action="store_true")
    given = parser.parse_args()
    if given.child:
        return child(given.child, given.metered)
    _, figures = with_hooks(metered=True)
    print(
        {k: round(v, 1) for k, v in figures.items()},
        f"{figures['hooks_us'] / figures['step_us']:.2%} of a step",
        flush=True,
    )
    pairs: list[dict[str, float]] = []
    for i in range(given.pairs):
        parts: list[tuple[str, Callable[[], list[float]]]] = [
            ("plain", lambda: full_training(CELL, N_EPOCHS)),
            ("hooks", lambda: with_hooks(metered=False)[0]),
        ]
        pair = {name: fmean(run()) for name, run in (parts if i % 2 == 0 else parts[::-1])}
        pairs.append(pair)
        print(i, {k: round(v, 3) for k, v in pair.items()}, flush=True)
        saved = {"cell": CELL.name, "summary": summary(figures, pairs), "pairs": pairs}
        save(given.out, {"machine": machine(), **saved})
    print(summary(figures, pairs))
    return None


if __name__ == "__main__":
    main()
