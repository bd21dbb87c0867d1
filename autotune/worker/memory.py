"""How much memory did this rank need at its peak?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import torch


def peak_memory_bytes(device: torch.device) -> int:
    """Peak bytes of the rank.

    CUDA: what torch's allocator reserved at most. CPU: the peak resident set of this process (VmHWM) without its file
    pages now, plus the proportional set size of its loader workers now, which counts pages shared after fork once.
    File pages are the libraries: the kernel may drop them, and a forked process counts them only as it touches them.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    status = Path("/proc/self/status")
    own = _kib(status, "VmHWM:") - _kib(status, "RssFile:")
    children = sum(_kib(Path(f"/proc/{p.pid}/smaps_rollup"), "Pss:") for p in psutil.Process().children(recursive=True))
    return (own + children) * 1024


def forward_as_validation(trainer: Any) -> None:
    """Once the forward pass of the validator: twice the batch through the EMA in fp32, under autocast with AMP, without
    gradients (engine/trainer.py gives the validation loader batch_size * 2, ULTRALYTICS 1.9). Matching boxes and NMS
    are left out.
    """
    size = int(trainer.args.imgsz)
    images = torch.zeros(2 * trainer.train_loader.batch_size, 3, size, size, device=trainer.device)
    with torch.inference_mode(), torch.autocast(trainer.device.type, enabled=bool(trainer.amp)):
        trainer.ema.ema(images)


def _kib(path: Path, key: str) -> int:
    try:
        for line in path.read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1])
    except OSError:
        return 0  # the worker has gone, or a container hides the file
    return 0
