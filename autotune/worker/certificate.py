"""Does this rank live through the worst that its job will ask of the memory? (MEASURING 6, the OOM certificate)

Four things need more than an ordinary step, and a short segment meets none of them for sure: the optimizer's state and
the EMA, which are made by the first optimizer step; the images with most objects, whose assignment of targets grows
with them; the largest size that multi_scale draws; and the validation, which takes twice the batch in fp32 with its
loss and its NMS. All of them run here, one after the other, in the trainer's own loop and in one process, so that what
one leaves in the allocator's cache is there when the next one needs its share.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Final

from autotune.worker.memory import peak_memory_bytes
from autotune.worker.patches.replace import replaced
from autotune.worker.readback import effective
from autotune.worker.recorder import Recorder

N_SAMPLES: Final = 64
"""Drawn in all, at least one an image of the batch: which objects a mosaic keeps is chance, so of several of the same
image the one with most is taken. Four decodes a mosaic at 100 images/s are 2.5 s."""
DRAWS: Final = 4
"""Of one image at most."""
MOST_UPDATES: Final = 8
"""GradScaler skips the optimizer's first steps while its scale is too large, and then no state is made: it is halved
each time, and a model whose gradients still overflow after so many is given up waiting for."""


def certify(trainer: Any, recorder: Recorder, over: type[BaseException]) -> None:
    """Probe `certificate`: the training loop as it is, ended by raising `over` on every rank after the same step.

    Ordinary batches until an optimizer step has made its state; then one batch of the most crowded images at the
    largest size, again and again until the optimizer steps after it, accumulation and communication as in the job; then
    validation. Nothing is timed. All ranks get the same crowded images, which is worse than any job's luck.
    """
    segment = recorder.segment
    segment.settings = replace(segment.settings, warmup_steps=sys.maxsize, warmup_cap_s=math.inf)
    worst = _Worst(trainer, recorder, over)
    trainer.preprocess_batch = worst.preprocess
    trainer.add_callback("on_train_batch_end", lambda _: worst.ended())


class _Worst:
    """Where the certificate is: `batch` is None until the optimizer has its state."""

    def __init__(self, trainer: Any, recorder: Recorder, over: type[BaseException]) -> None:
        self._trainer, self._recorder, self._over = trainer, recorder, over
        self._stock = trainer.preprocess_batch
        self._batch: dict[str, Any] | None = None
        self._updates = 0
        """Of the EMA when the crowded batch came."""
        self._evidence: dict[str, Any] = recorder.certificate

    def preprocess(self, batch: dict[str, Any]) -> Any:
        """The trainer's own; while it is the crowded batch's turn, of that one and at its largest size."""
        if self._batch is None:
            if (n := _n_objects(batch)) is not None:
                self._evidence["n_objects_ordinary"] = max(n, int(self._evidence.get("n_objects_ordinary", 0)))
            return self._stock(batch)
        with replaced(random, "randrange", _largest):  # by which preprocess_batch draws the size for multi_scale
            # A shallow copy: preprocess_batch puts device tensors into the dict that it is given.
            ready = self._stock(dict(self._batch))
        self._evidence["imgsz"] = max(ready["img"].shape[-2:])
        return ready

    def ended(self) -> None:
        """A step has ended."""
        trainer, evidence = self._trainer, self._evidence
        updates = int(trainer.ema.updates)
        evidence["n_optimizer_steps"] = updates
        if self._batch is None:
            if updates and (any(trainer.optimizer.state.values()) or updates >= MOST_UPDATES):
                evidence["steps_bytes"] = peak_memory_bytes(trainer.device)
                self._batch, self._updates = self._crowded(), updates
            return
        if updates == self._updates:
            return
        evidence["crowded_bytes"] = peak_memory_bytes(trainer.device)
        evidence["n_val_images"], evidence["val_imgsz"] = validate(trainer)
        recorder = self._recorder
        recorder.effective = effective(trainer, recorder.spec.n_ranks)
        recorder.peak_mem_bytes = peak_memory_bytes(trainer.device)
        recorder.over = True
        raise self._over

    def _crowded(self) -> dict[str, Any]:
        """The batch; for a task whose images hold no objects any will do."""
        loader, evidence = self._trainer.train_loader, self._evidence
        batch = crowded_batch(loader.dataset, loader.batch_size)
        if batch is None:
            batch = dict(next(iter(loader)))
        evidence["n_images"] = int(batch["img"].shape[0])
        if (n := _n_objects(batch)) is not None:
            evidence["n_objects"] = n
            evidence["n_objects_of_one"] = int(batch["batch_idx"].long().bincount().max()) if n else 0
        return batch


def most_crowded(dataset: Any, n: int) -> list[int] | None:
    """Indices of the images with most labels, most first; None where the dataset has no objects (classification).

    With rect=True the images of a batch have one shape, and the batch with the largest one is taken whole.
    """
    labels = getattr(dataset, "labels", None)
    if not labels or not isinstance(labels[0], dict) or "cls" not in labels[0]:
        return None
    counts = [len(label["cls"]) for label in labels]
    among: Sequence[int] = range(len(labels))
    if getattr(dataset, "rect", False):
        among = _of_largest_shape(dataset, counts)
    return sorted(among, key=lambda i: -counts[i])[:n]


def crowded_batch(dataset: Any, n: int) -> dict[str, Any] | None:
    """A batch of the most crowded images, augmented and collated as the dataset does it; None where there are none.

    Mosaic (and MixUp, CutMix) draws the other images of a sample among the same ones.
    """
    chosen = most_crowded(dataset, n)
    if chosen is None:
        return None
    draws = max(1, min(DRAWS, N_SAMPLES // max(len(chosen), 1)))
    with ExitStack() as stack:
        # One transform may stand in several places: the mosaic, before MixUp too.
        for mix in {id(mix): mix for mix in _mixing(getattr(dataset, "transforms", None))}.values():
            stack.enter_context(replaced(mix, "get_indexes", _among(chosen)))
        samples = [max((dataset[i] for _ in range(draws)), key=lambda s: len(s["cls"])) for i in chosen]
    # A dataset smaller than the batch, which is then full in no epoch; several ranks share it.
    batch: dict[str, Any] = dataset.collate_fn(samples)
    return batch


def validate(trainer: Any) -> tuple[int, int]:
    """The trainer's own validation of the loader's first batch, and of the one with the largest images where that is
    another: forward pass of the EMA, loss, NMS, metrics.

    Returns:
        Images of the larger batch, and the longer side of the largest image in pixels.
    """
    validator = trainer.validator
    few = _Few(validator.dataloader)
    validator.dataloader = few
    stock = validator.preprocess

    def seen(batch: dict[str, Any]) -> Any:
        few.n_images = max(few.n_images, int(batch["img"].shape[0]))
        few.side = max(few.side, *batch["img"].shape[-2:])
        return stock(batch)

    validator.preprocess = seen
    trainer.really_validate()
    return few.n_images, few.side


class _Few:
    """Stands in for the validation loader, with one or two of its batches."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.n_images = self.side = 0
        dataset = loader.dataset
        self._largest: Sequence[int] = ()
        if getattr(dataset, "rect", False):
            self._largest = _of_largest_shape(dataset, [0] * len(dataset))
            if int(dataset.batch[self._largest[0]]) == 0:
                self._largest = ()

    def __len__(self) -> int:
        return 2 if self._largest else 1

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield next(iter(self.loader))  # by its own workers, whose memory counts on a CPU
        if self._largest:
            dataset = self.loader.dataset
            yield dataset.collate_fn([dataset[i] for i in self._largest])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


def _of_largest_shape(dataset: Any, counts: Sequence[int]) -> list[int]:
    """Images of the batch with the largest shape; of several such, the one with most objects."""
    areas = [float(h * w) for h, w in dataset.batch_shapes]
    of_batch: dict[int, list[int]] = {}
    for i, b in enumerate(dataset.batch):
        of_batch.setdefault(int(b), []).append(i)
    return max(of_batch.items(), key=lambda item: (areas[item[0]], sum(counts[i] for i in item[1])))[1]


def _mixing(transforms: Any) -> Iterator[Any]:
    """Every transform that puts other images into a sample, wherever it stands."""
    if transforms is None:
        return
    if hasattr(transforms, "get_indexes"):
        yield transforms
    yield from _mixing(getattr(transforms, "pre_transform", None))
    inner = getattr(transforms, "transforms", None)
    for transform in inner if isinstance(inner, list) else []:
        yield from _mixing(transform)


def _among(chosen: Sequence[int]) -> Callable[[Any], Any]:
    """A get_indexes that draws among these: as many as the mosaic's grid needs, one for any other transform."""

    def make(stock: Any) -> Callable[[], int | list[int]]:
        n = getattr(stock.__self__, "n", None)
        return lambda: random.choices(chosen, k=n - 1) if n else random.choice(chosen)

    return make


def _largest(_: Any) -> Callable[..., int]:
    """A randrange that draws the last number."""
    return lambda start, stop=None, step=1: range(start if stop is not None else 0, stop or start, step)[-1]


def _n_objects(batch: dict[str, Any]) -> int | None:
    """Of a collated batch; None for a task whose images hold none."""
    return len(batch["cls"]) if "batch_idx" in batch else None
