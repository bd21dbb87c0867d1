"""Does a trial that certifies its batch end with the worst that its job will ask, and no other trial?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics.models.yolo.detect import DetectionTrainer

from tests.worker.trainers import train


class WatchedTrainer(DetectionTrainer):
    """Notes what goes through the EMA."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.seen: list[tuple[int, ...]] = []
        super().__init__(*args, **kwargs)
        self.add_callback("on_train_start", lambda t: t.ema.ema.register_forward_pre_hook(self.note))

    def note(self, model: torch.nn.Module, inputs: tuple[Any]) -> None:
        if not isinstance(inputs[0], dict):
            self.seen.append(tuple(inputs[0].shape[:2]))


@pytest.mark.parametrize("certify", [False, True])
def test_twice_the_batch_goes_through_the_ema_once(tmp_path: Path, tiny: Path, certify: bool) -> None:
    recorder, trainer = train(tmp_path, tiny, 4, stock=WatchedTrainer, certify=certify)
    assert trainer.seen == ([(8, 3)] if certify else [])
    assert (recorder.peak_mem_bytes or 0) > 0
    assert recorder.segment.measured_from is not None, "the segment was measured first"
    n_steps = len(recorder.segment.steps.end_s)
    assert len(recorder.segment.steps.forward_s) == n_steps, "what comes after it is in no column"
    found = recorder.certificate
    if not certify:
        assert found == {}
        return
    assert (found["n_images"], found["n_val_images"], found["imgsz"]) == (4, 8, 32)
    assert found["n_optimizer_steps"] == trainer.ema.updates == n_steps + 1
