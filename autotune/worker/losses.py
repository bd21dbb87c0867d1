"""What is the loss of every step, and on which images? So that two settings can be compared on the same batches."""

from __future__ import annotations

import math
import zlib
from dataclasses import replace
from typing import Any

import torch

from autotune.worker.memory import peak_memory_bytes
from autotune.worker.readback import effective
from autotune.worker.recorder import Recorder


def record_losses(trainer: Any, recorder: Recorder, over: type[BaseException]) -> None:
    """Probe `losses`: the training loop as it is, ended by raising `over` after `spec.loss_steps` steps on every rank.

    The seed in the trainer's arguments decides weights, order and augmentation. That two runs drew the same images is
    not taken for granted (a compiled model drops an epoch's last batch): the record says which ones they were.
    """
    segment, n_steps = recorder.segment, recorder.spec.loss_steps
    segment.settings = replace(segment.settings, warmup_steps=n_steps + 1, warmup_cap_s=math.inf)  # nothing is timed
    stock = trainer.preprocess_batch

    def seen(batch: dict[str, Any]) -> Any:
        recorder.batch_ids.append(checksum(batch["img"]))
        return stock(batch)

    def ended(_: Any) -> None:
        recorder.losses.append(float(trainer.loss.detach()))
        if len(recorder.losses) < n_steps:
            return
        recorder.effective = effective(trainer, recorder.spec.n_ranks)
        recorder.peak_mem_bytes = peak_memory_bytes(trainer.device)
        recorder.over = True
        raise over

    trainer.preprocess_batch = seen
    trainer.add_callback("on_train_batch_end", ended)


def checksum(images: torch.Tensor) -> str:
    """Eight hex digits of a batch on the host, before it is scaled."""
    return f"{zlib.crc32(images.contiguous().numpy().data):08x}"
