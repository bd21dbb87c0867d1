"""How much of /dev/shm do loader workers fill? (KNOBS 1.6)"""

from __future__ import annotations

from typing import Final

TRAIN_PREFETCH: Final = 4
VAL_PREFETCH: Final = 2
"""Batches that Ultralytics lets a loader worker prepare ahead (data/build.py of 8.4.190)."""
MARGIN: Final = 1.2
"""Over the formula (KNOBS 4, check 16): masks and boxes, and NCCL's own buffers."""


def train_bytes(*, workers: int, batch_per_gpu: int, image_bytes: int, prefetch: int = TRAIN_PREFETCH) -> int:
    """Of one rank's training loader when its queue is full: workers x prefetch x bytes of a batch."""
    return workers * prefetch * batch_per_gpu * image_bytes


def val_bytes(*, workers: int, batch_per_gpu: int, image_bytes: int) -> int:
    """Of one rank's validation loader, whose batches are twice as large; the training's queue stays full meanwhile."""
    return workers * VAL_PREFETCH * 2 * batch_per_gpu * image_bytes


def image_bytes(imgsz: int, bytes_per_value: int = 1) -> int:
    """Of one image as a worker hands it over: 3 x imgsz^2 values of 8 bits (classify: 32 bit floats)."""
    return 3 * imgsz**2 * bytes_per_value
