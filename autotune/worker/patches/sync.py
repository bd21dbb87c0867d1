"""Which micro-steps need to reduce their gradients? With accumulation only the last before an optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from autotune.contract import Value
from autotune.worker.patches.ddp import ddp_of
from autotune.worker.patches.replace import callback, replaced

REFUSAL: Final = (
    "no_sync: the optimizer would step on gradients that the ranks have not reduced together; "
    "this Ultralytics steps at another batch than expected: train without the knob no_sync"
)


class GradSync:
    """Follows the loop's own rule, `ni - last_opt_step >= accumulate` (engine/trainer.py), one batch ahead.

    A reduction too many is harmless, since the mean of equal gradients is the same again; one too few is refused by
    the optimizer step.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.n_batches = 0
        self.n_unsynced = 0
        self._epoch: int | None = None
        self._i = -1
        self._ni = -1
        self._last_step = -1

    @property
    def in_effect(self) -> bool:
        """True when micro-steps went without a reduction, or before there could have been one."""
        return self.n_unsynced > 0 or self.n_batches <= 1

    def epoch_start(self) -> None:
        """An epoch that is done again (NaN recovery) starts with no last step, as in the loop."""
        if self.trainer.epoch == self._epoch:
            self._last_step = -1
        self._epoch, self._i = self.trainer.epoch, -1

    def batch_start(self) -> None:
        """Decide for the batch that begins; during warm-up, where accumulate still ramps, every batch is reduced."""
        t = self.trainer
        self._i += 1
        self._ni = self._i + len(t.train_loader) * t.epoch
        n_warmup = _n_warmup(t)
        ramping = n_warmup > 0 and self._ni <= n_warmup
        first = self.n_batches == 0  # from which DDP learns the graph: with static_graph it fails unreduced
        synced = first or ramping or self._ni - self._last_step >= t.accumulate
        self.n_batches += 1
        self.n_unsynced += not synced
        if ddp := ddp_of(t.model):
            ddp.require_backward_grad_sync = synced

    def optimizer_step(self, step: Callable[[], None]) -> None:
        """Step, unless this batch's gradients stayed on their rank.

        Raises:
            RuntimeError: they did.
        """
        ddp = ddp_of(self.trainer.model)
        if ddp is not None and not ddp.require_backward_grad_sync:
            raise RuntimeError(REFUSAL)
        self._last_step = self._ni
        step()


def _n_warmup(trainer: Any) -> int:
    """Batches in which accumulate may still change; at least as many as the loop's own."""
    n_batches = len(trainer.train_loader)
    if hasattr(trainer, "_get_warmup_iterations"):
        return int(trainer._get_warmup_iterations(n_batches))
    warmup = float(trainer.args.warmup_epochs)
    return max(round(warmup * n_batches), 100) if warmup > 0 else 0  # as versions without that method count


@contextmanager
def no_sync(trainer: Any, value: Value) -> Iterator[None]:
    """Micro-steps that only accumulate are not reduced, by DDP's own switch `require_backward_grad_sync`."""
    if not value:
        yield
        return
    sync = GradSync(trainer)

    def make(stock: Callable[[], None]) -> Callable[[], None]:
        return lambda: sync.optimizer_step(stock)

    trainer.grad_sync = sync
    try:
        with (
            callback(trainer, "on_train_epoch_start", lambda _: sync.epoch_start()),
            callback(trainer, "on_train_batch_start", lambda _: sync.batch_start()),
            replaced(trainer, "optimizer_step", make),
        ):
            yield
    finally:
        del trainer.grad_sync
        if ddp := ddp_of(trainer.model):
            ddp.require_backward_grad_sync = True
