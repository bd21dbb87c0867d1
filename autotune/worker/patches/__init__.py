"""How do settings that YOLO has no argument for get into its trainer? One mixin, for trials and full training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Final

from autotune.contract import Params, Value
from autotune.worker.patches import compute, ddp, loader, loop, sync

log = logging.getLogger(__name__)

Patch = Callable[[Any, Value], AbstractContextManager[None]]
"""(trainer, value) -> a context manager around the whole training: inside, the setting applies; after, all is stock."""

PATCHES: Final[dict[str, Patch]] = {
    "workers": loader.workers,  # this and channels_last only where Ultralytics ignores its own argument (CPU)
    "channels_last": compute.channels_last,
    "prefetch_factor": loader.prefetch_factor,
    "pin_memory": loader.pin_memory,
    "val_workers": loader.val_workers,
    "torch_threads": compute.torch_threads,
    "cudnn_benchmark": compute.cudnn_benchmark,
    "fp32_precision": compute.fp32_precision,
    "activation_memory_budget": compute.activation_memory_budget,
    "fused_sgd": compute.fused_sgd,
    "log_every": loop.log_every,
    "stride_on_cpu": loop.stride_on_cpu,
    "gc_freeze": loop.gc_freeze,
    "empty_cache": loop.empty_cache,
    "bucket_cap_mb": ddp.ddp_argument("bucket_cap_mb"),
    "gradient_as_bucket_view": ddp.ddp_argument("gradient_as_bucket_view"),
    "batched_grad_copy": ddp.ddp_argument("batched_grad_copy"),
    "find_unused_parameters": ddp.find_unused_parameters,
    "static_graph": ddp.static_graph,
    "ddp_wrap": ddp.ddp_wrap,
    "no_sync": sync.no_sync,
    "blocking_wait": ddp.blocking_wait,
}
"""Every setting the mixin knows; they are entered in this order."""


class TuneMixin:
    """The settings of `patches`, on top of any Ultralytics trainer class; nothing else.

    What is replaced are stable override points only (ULTRALYTICS 8), on the trainer object or in the module where
    Ultralytics looks the name up; `_do_train` is called as it is.
    """

    patches: Params = {}
    tolerant = False
    """A full training says what cannot be applied here and goes on; a trial would measure something else."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in sorted(set(self.patches) - set(PATCHES)):
            self._give_up(name, ValueError(f"no such patch: {name}"))

    def _give_up(self, name: str, why: Exception) -> None:
        if not self.tolerant:
            raise why
        log.warning("%s=%s is left out, training goes on without it: %s", name, self.patches[name], why)

    @contextmanager
    def patched(self) -> Iterator[None]:
        """Inside, all settings apply; `train` enters this itself."""
        with ExitStack() as stack:
            for name in PATCHES:
                if name in self.patches:
                    try:
                        stack.enter_context(PATCHES[name](self, self.patches[name]))
                    except Exception as e:  # whatever another version's internals raise
                        self._give_up(name, e)
            yield

    def train(self) -> None:
        """The trainer's own, with the settings."""
        with self.patched():
            super().train()  # type: ignore[misc]

    def loss_is_read(self) -> bool:
        """Has the host waited for this step's loss anyway? Rank 0's progress line reads it when it is due."""
        progress: loop.Progress | None = getattr(self, "progress", None)
        return progress is None or progress.due
