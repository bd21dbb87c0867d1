"""How fast is the loader alone, the step alone, the step without its communication? Probes (ULTRALYTICS 9a 5)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from torch.nn.parallel import DistributedDataParallel

from autotune.worker.memory import peak_memory_bytes
from autotune.worker.readback import effective, ready_batches
from autotune.worker.recorder import Recorder

N_KEPT: Final = 6
"""Batches that are replayed: enough that crowded and empty images average out, and that none stays in a CPU's cache."""


def load_only(trainer: Any, recorder: Recorder) -> None:
    """Probe `data`: the trainer's own loader, its batches counted and thrown away, until the segment is over.

    The trainer is set up in full, so that dataset, sampler, workers and image cache are those of a trial; the loop of
    trainer.train() is replaced by ours.
    """
    if trainer.world_size > 1:
        trainer._setup_ddp()
    trainer._setup_train()
    trainer.epoch = trainer.start_epoch
    trainer.run_callbacks("on_train_start")
    _close_mosaic(trainer)
    recorder.segment.accumulate = 1  # no optimizer step: no cycle to keep whole
    loader = trainer.train_loader
    before = asked = recorder.clock()
    for batch in _endless(loader, recorder.spec.n_ranks):
        now = recorder.clock()
        images = int(batch["img"].shape[0])
        if recorder.step(wait_s=now - asked, step_s=now - before, images=images, ready=ready_batches(loader)):
            break
        before, asked = now, recorder.clock()  # our own hooks are no wait
    recorder.effective = effective(trainer, recorder.spec.n_ranks)
    recorder.peak_mem_bytes = peak_memory_bytes(trainer.device)


def _endless(loader: Any, n_ranks: int) -> Iterator[dict[str, Any]]:
    """Epoch after epoch, as the training loop would ask for them."""
    for epoch in itertools.count():
        if n_ranks > 1:
            loader.sampler.set_epoch(epoch)
        yield from loader


def _close_mosaic(trainer: Any) -> None:
    """Close the mosaic where the training loop would before its first batch (close_mosaic >= epochs), as it does."""
    if trainer.args.close_mosaic and trainer.start_epoch >= trainer.epochs - trainer.args.close_mosaic:
        trainer._close_dataloader_mosaic()
        trainer.train_loader.reset()


def no_sync(trainer: Any) -> None:
    """Probe `no_sync`: from on_train_start on, every rank keeps its gradients, and trains on by itself.

    The step is the same but for DDP's part in the backward pass: copies into buckets, and the wait for the others.
    """
    wrapped = (trainer.model, getattr(trainer.model, "_orig_mod", None))  # torch.compile may stand around DDP
    ddp = next((m for m in wrapped if isinstance(m, DistributedDataParallel)), None)
    if ddp is None:
        raise RuntimeError("no DDP here: there is no communication to leave out")
    ddp.require_backward_grad_sync = False


def replay(trainer: Any, recorder: Recorder) -> None:
    """Probe `compute`: from on_train_start on, the training loop gets kept batches in place of the loader's."""
    _close_mosaic(trainer)
    loader = trainer.train_loader
    # The last batch of an epoch may be smaller: it is kept only where there is no other.
    kept = list(itertools.islice(loader, min(N_KEPT, max(1, len(loader) - 1))))
    loader.reset()  # its workers would go on filling their queue on the cores that the step needs
    trainer.train_loader = Replay(loader, kept)
    segment = recorder.segment
    segment.steps = replace(segment.steps, turn=1)
    segment.queue = segment.buffer_steps = 0  # no queue to drain, no mosaic buffer to fill
    recorder.job["buffer_steps"] = 0


class Replay:
    """Stands in for a loader: the same length, dataset and settings, but every batch is at hand.

    Args:
        loader: answers everything that is not a batch (ULTRALYTICS 6, loader contract).
        kept: batches on the host, pinned where the loader pins them.
    """

    def __init__(self, loader: Any, kept: list[dict[str, Any]]) -> None:
        self.loader = loader
        self.kept = kept

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # A shallow copy: preprocess_batch puts device tensors into the dict that it is given.
        return (dict(batch) for batch in itertools.islice(itertools.cycle(self.kept), len(self)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)
