"""What does the training loop do around a step? The progress line, the loss's strides, garbage, the epoch's end."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from autotune.contract import Value
from autotune.worker.patches.replace import callback, replaced


class Progress:
    """Which steps' progress lines read the losses from the device, and what the others show: the last that were read.

    Args:
        every: the first step's line is due, and then each `every`-th.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.n_steps = 0
        self.n_lines = 0
        """Steps whose line read the losses."""
        self._read_at = 0
        self._shown: list[float] = []

    @property
    def due(self) -> bool:
        """Is the line of the present step to show its own losses?"""
        return self.n_steps <= 1 or (self.n_steps - 1) % self.every == 0

    def show(self, losses: list[torch.Tensor]) -> list[float]:
        """Numbers for the line; waits for the device only when they are due, once for all of them."""
        if self.due or len(self._shown) != len(losses):
            self._shown = torch.stack([loss.detach().float() for loss in losses]).tolist()
            self.n_lines += self._read_at != self.n_steps
            self._read_at = self.n_steps
        return self._shown


class Losses(dict[str, torch.Tensor]):
    """The trainer's running means; only `values()`, of which the line is made, gives numbers in place of tensors."""

    progress: Progress

    def values(self) -> Any:
        """Numbers that may be some steps old."""
        return self.progress.show(list(super().values()))


@contextmanager
def log_every(trainer: Any, value: Value) -> Iterator[None]:
    """The progress line of rank 0 reads the losses every k steps, not in each: reading waits for the device.

    The line is made of `self.tloss.values()` in the middle of the loop, so `tloss` becomes a property of the trainer's
    class (which is made for this training). What is trained on is `self.loss`, which nobody touches, and the means are
    updated by key, from the tensors. A trainer whose `tloss` is no dict reads in every step, as before.
    """
    progress = Progress(int(value or 1))
    cls = type(trainer)
    means: Any = trainer.tloss

    def get(_: Any) -> Any:
        return means

    def put(_: Any, new: Any) -> None:
        nonlocal means
        means = new
        if type(new) is dict:
            means = Losses(new)
            means.progress = progress

    def tick(_: Any) -> None:
        progress.n_steps += 1

    trainer.progress = progress
    cls.tloss = property(get, put)
    try:
        with callback(trainer, "on_train_batch_start", tick):
            yield
    finally:
        del cls.tloss
        del trainer.progress
        trainer.tloss = dict(means) if isinstance(means, Losses) else means


def log_every_in_effect(trainer: Any, rank: int) -> int | None:
    """Steps a progress line; None when the lines were read otherwise than asked. Only rank 0 prints one."""
    progress: Progress | None = getattr(trainer, "progress", None)
    if progress is None:
        return 1
    as_asked = progress.n_lines == -(-progress.n_steps // progress.every)
    return progress.every if as_asked or rank > 0 else None


def criteria(criterion: Any) -> Iterator[Any]:
    """The losses that a criterion is made of and that keep strides as a tensor (E2ELoss has two branches)."""
    if isinstance(getattr(criterion, "stride", None), torch.Tensor):
        yield criterion
    for part in vars(criterion).values() if hasattr(criterion, "__dict__") else ():
        if type(part).__module__ == type(criterion).__module__:
            yield from criteria(part)


def _model(trainer: Any) -> Any:
    from ultralytics.utils.torch_utils import unwrap_model

    return unwrap_model(trainer.model)


@contextmanager
def stride_on_cpu(trainer: Any, value: Value) -> Iterator[None]:
    """The loss keeps its strides on the host: each is read back from the device in every step (ULTRALYTICS 1.8)."""
    moved: list[tuple[Any, torch.Tensor]] = []

    def move(_: Any) -> None:
        model = _model(trainer)
        if getattr(model, "criterion", None) is None:
            model.criterion = model.init_criterion()  # as the first step would
        for part in list(criteria(model.criterion)) if value else ():
            moved.append((part, part.stride))
            part.stride = part.stride.cpu()

    try:
        with callback(trainer, "on_train_start", move):
            yield
    finally:
        for part, stride in moved:
            part.stride = stride


def stride_on_cpu_in_effect(trainer: Any) -> bool | None:
    """True when all strides of the loss are on the host; None before there is a loss, or one without strides."""
    found = list(criteria(getattr(_model(trainer), "criterion", None)))
    return all(c.stride.device.type == "cpu" for c in found) if found else None


@contextmanager
def gc_freeze(trainer: Any, value: Value) -> Iterator[None]:
    """What exists when training begins is left out of every later garbage collection."""

    def freeze(_: Any) -> None:
        if value:
            gc.collect()
            gc.freeze()

    try:
        with callback(trainer, "on_train_start", freeze):
            yield
    finally:
        gc.unfreeze()


def gc_freeze_in_effect() -> bool:
    """True when objects are frozen."""
    return gc.get_freeze_count() > 0


def empty_cache(trainer: Any, value: Value) -> AbstractContextManager[None]:
    """False: torch keeps its cached device memory at the end of an epoch; it is still given back after an OOM."""

    def make(stock: Callable[..., None]) -> Callable[..., None]:
        def clear_memory(threshold: float | None = None) -> None:
            if threshold is None:
                stock()

        return stock if value else clear_memory

    return replaced(trainer, "_clear_memory", make)


def empty_cache_in_effect(trainer: Any) -> bool:
    """True while the trainer's own method runs at the end of an epoch."""
    return getattr(trainer._clear_memory, "__func__", None) is type(trainer)._clear_memory
