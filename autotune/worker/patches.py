"""How do settings that YOLO has no argument for get into its trainer? One mixin, for trials and full training."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import ultralytics.data.build as build

from autotune.contract import Params

PATCHES = ("torch_threads", "cudnn_benchmark", "prefetch_factor", "workers", "channels_last")
"""Every patch the mixin knows; `workers` and `channels_last` only where Ultralytics ignores its own argument (CPU)."""


@contextlib.contextmanager
def prefetch(factor: int | None) -> Iterator[None]:
    """Loaders built inside get this prefetch_factor (Ultralytics hard-codes 4 for training, data/build.py).

    Args:
        factor: batches a worker; None leaves the loader as it is. Without workers torch allows none, so nothing is set.
    """
    if factor is None:
        yield
        return
    stock = build.InfiniteDataLoader

    def with_factor(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("num_workers"):
            kwargs["prefetch_factor"] = factor
        return stock(*args, **kwargs)

    build.InfiniteDataLoader = with_factor
    try:
        yield
    finally:
        build.InfiniteDataLoader = stock


class TuneMixin:
    """The settings of `patches`, on top of any Ultralytics trainer class; nothing else.

    Stable override points only (ULTRALYTICS 8): __init__, setup_model, get_dataloader and the callbacks.
    """

    patches: Params = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        unknown = set(self.patches) - set(PATCHES)
        if unknown:
            raise ValueError(f"unknown patches {sorted(unknown)}")
        me: Any = self
        if "workers" in self.patches:
            # The constructor sets workers to 0 on CPU; the loaders are built later from args.
            me.args.workers = int(self.patches["workers"] or 0)
        if self.patches.get("cudnn_benchmark") is not None:
            torch.backends.cudnn.benchmark = bool(self.patches["cudnn_benchmark"])
        self._set_threads()
        # Ultralytics resets torch's threads whenever a device is selected (validators do): set them again each epoch.
        me.add_callback("on_train_epoch_start", lambda _: self._set_threads())

    def _set_threads(self) -> None:
        threads = self.patches.get("torch_threads")
        if threads is not None:
            torch.set_num_threads(int(threads))

    def setup_model(self) -> Any:
        """Build the model; on CPU put its weights in channels_last before optimizer and EMA are made from them."""
        me: Any = self
        ckpt = super().setup_model()  # type: ignore[misc]
        if self.patches.get("channels_last") and me.device.type == "cpu":
            me.model = me.model.to(memory_format=torch.channels_last)
        return ckpt

    def get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own loader, with our prefetch factor for training."""
        mode = kwargs.get("mode", args[3] if len(args) > 3 else "train")
        factor = self.patches.get("prefetch_factor") if mode == "train" else None
        with prefetch(None if factor is None else int(factor)):
            return super().get_dataloader(*args, **kwargs)  # type: ignore[misc]


def is_channels_last(model: torch.nn.Module) -> bool:
    """True when the convolution weights lie in NHWC; 1x1 kernels and single channels cannot tell."""
    for p in model.parameters():
        if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1:
            return p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()
    return False


def alloc_conf_in_effect() -> str | None:
    """The CUDA allocator's setting as the environment gave it; PYTORCH_CUDA_ALLOC_CONF wins over the new name."""
    return os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or os.environ.get("PYTORCH_ALLOC_CONF") or None
