"""Does a trial that certifies its batch end with what validation needs, and no other trial?"""

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
        self.seen: list[tuple[tuple[int, ...], bool, bool]] = []
        super().__init__(*args, **kwargs)
        self.add_callback("on_train_start", lambda t: t.ema.ema.register_forward_pre_hook(self.note))

    def note(self, model: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self.seen.append((tuple(inputs[0].shape), model.training, torch.is_inference_mode_enabled()))


@pytest.mark.parametrize("certify", [False, True])
def test_twice_the_batch_goes_through_the_ema_once(tmp_path: Path, tiny: Path, certify: bool) -> None:
    recorder, trainer = train(tmp_path, tiny, 4, stock=WatchedTrainer, certify=certify)
    assert trainer.seen == ([((8, 3, 32, 32), False, True)] if certify else [])
    assert (recorder.peak_mem_bytes or 0) > 0
    assert trainer.ema.updates >= 4, "optimizer steps and EMA lie before it"
