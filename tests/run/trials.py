"""Specs of small real trials, for the tests of run/ and worker/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autotune.contract import Deadlines, Params, SegmentSettings, TrialSpec

SHORT = SegmentSettings(
    warmup_steps=2, warmup_s=0.1, warmup_cap_s=2.0, measure_s=0.5, measure_steps=2, measure_cap_s=3.0
)


def spec(
    data: Path | str,
    *,
    number: int = 0,
    task: str = "detect",
    model: str = "yolo11n.yaml",
    patches: Params | None = None,
    changes: Params | None = None,
    env: dict[str, str] | None = None,
    backend: str = "yolo",
    segment: SegmentSettings = SHORT,
    **args: Any,
) -> TrialSpec:
    """A trial of a few steps at 64 pixels."""
    train_args = {
        "task": task,
        "mode": "train",
        "model": model,
        "data": str(data),
        "imgsz": 64,
        "batch": 8,
        "epochs": 100,
        "device": "cpu",
        "plots": False,
        "val": False,
        "save": False,
        "warmup_epochs": 0,
        "save_dir": "yolo",
        "exist_ok": True,
        **args,
    }
    changes = changes or {}
    return TrialSpec(
        number=number,
        role="trial",
        backend=backend,
        task=task,
        params=changes,
        changes=changes,
        train_args=train_args,
        env=env or {},
        patches=patches or {},
        segment=segment,
        deadlines=Deadlines(total_s=120.0),
    )
