"""best/ folders of a small real job, as a search on this machine would have exported them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from autotune.contract import Comparison, SegmentSettings, Winner, to_dict, write_json
from autotune.machine.facts import read_machine
from autotune.report.receipt import Fresh, Job, Receipt
from tests.run.trials import SHORT

MODEL = Path(__file__).parent / "models" / "tiny-detect.yaml"


def job(data: Path | str) -> dict[str, Any]:
    """YOLO arguments of a small job, as winner.json has them."""
    return {"task": "detect", "model": str(MODEL), "data": str(data), "epochs": 100, "imgsz": 64, "batch": 8}


def receipt_for(data: Path | str, *, speedup: float = 1.0, segment: SegmentSettings = SHORT, **more: Any) -> Receipt:
    """Of two equal configurations on this machine; its noise is what two busy cores have."""
    args = {**job(data), "device": "cpu"}
    found = Receipt(
        run="2026-11-23_1405_tiny_cpu",
        started="2026-11-23T14:05:00+00:00",
        claim="no significant gain",
        objective="images_per_s",
        confirmed=True,
        simulated=False,
        seed=0,
        machine=read_machine(),
        baseline_params={"workers": 0},
        segment=segment,
        n_images=64,
        baseline=Job(train_args={**args, "workers": 0}),
        baseline_runs=Fresh(images_per_s=(100.0, 104.0, 97.0), took_s=4.0),
        winner_runs=Fresh(images_per_s=(101.0, 98.0, 103.0), took_s=4.0),
        ratio=Comparison(
            speedup=speedup, ci95_lo=speedup * 0.9, ci95_hi=speedup * 1.1, n_blocks=3, sigma_run_frac=0.05, df=6
        ),
        promise=None,
    )
    return replace(found, **more)


def best_in(folder: Path, receipt: Receipt, **winner: Any) -> Path:
    """A copied best/ folder."""
    best = folder / "my best é"
    best.mkdir(parents=True)
    args = dict(receipt.baseline.train_args)
    made = Winner(task="detect", train_args=args, params=receipt.baseline_params, **winner)
    write_json(best / "winner.json", made)
    write_json(best / "receipt.json", {"format": 1, "files": [], **to_dict(receipt)})
    return best
