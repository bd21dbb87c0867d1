"""How much memory do the parts of a training step need? Parameters, gradients, optimizer, EMA, activations an image."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Container, Iterable, Iterator
from functools import partial
from typing import Any, Final

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from autotune.contract import Sizes
from autotune.worker.recorder import Recorder

N_IMAGES: Final = 2
"""A batch norm needs two values a channel, and the last map of a 32 pixel image has one."""
SMALL_PX: Final = 64
"""Side of the images in the step that makes gradients and optimizer state: they do not depend on it."""

MEASURED_PX: Final = (640, 1280)
"""Sides that a larger image's activations are computed from: at 3840 pixels one forward pass of yolo26x took more than
five minutes on two cores."""


def measure_sizes(trainer: Any, recorder: Recorder) -> None:
    """Probe `sizes`: set the trainer up as the job's, and weigh what it keeps; nothing is timed.

    The trainer is the user's own up to optimizer and EMA; only the batch is N_IMAGES, and `optimizer=auto` is resolved
    for the batch and the images of the job. One step on small images makes gradients and optimizer state. Then one
    forward pass and loss at full size, whose saved tensors are counted and dropped at once: so it fits into the host's
    memory where the training itself would not.

    With images above the largest of MEASURED_PX there are two such passes, and the bytes are c1 A + c2 A^2 of the area
    A: all maps of a convolutional net grow with A, and the attention of C2PSA with its square.
    """
    recorder.begin("first_step")
    _as_the_job_would(trainer, recorder.spec.n_images)
    trainer._setup_train()
    batch = next(iter(trainer.train_loader))
    trainer._model_train()
    model, optimizer = trainer.model, trainer.optimizer
    _loss(trainer, _resized(batch, SMALL_PX)).backward()
    gradients = _bytes(p.grad for p in model.parameters() if p.grad is not None)
    trainer.optimizer_step()
    side = int(trainer.args.imgsz)
    sides = (side,) if side <= MEASURED_PX[-1] else MEASURED_PX
    saved = [_activations(trainer, _resized(batch, px)) for px in sides]
    recorder.sizes = Sizes(
        parameters_bytes=_bytes(model.parameters()),
        gradients_bytes=gradients,
        optimizer_bytes=_bytes(v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)),
        ema_bytes=_bytes(trainer.ema.ema.state_dict().values()),
        buffers_bytes=_bytes(model.buffers()),
        activations_bytes=round(saved[0] if len(sides) == 1 else extrapolated(sides, saved, side)),
        activations_px=sides,
        optimizer=type(optimizer).__name__,
    )


def extrapolated(sides: tuple[int, ...], measured: list[float], side: int) -> float:
    """c1 A + c2 A^2 through two measured points, at the area of `side`."""
    (a1, a2), (y1, y2) = (px**2 for px in sides), measured
    c2 = (y2 / a2 - y1 / a1) / (a2 - a1)
    return (y1 / a1 + c2 * (side**2 - a1)) * side**2


def _activations(trainer: Any, batch: dict[str, Any]) -> float:
    """Bytes an image that one forward pass and its loss save; weights live anyway."""
    own = {t.untyped_storage().data_ptr() for t in (*trainer.model.parameters(), *trainer.model.buffers())}
    with saved_bytes(own) as total:
        _loss(trainer, batch)
    return total[0] / int(batch["img"].shape[0])


@contextlib.contextmanager
def saved_bytes(own: Container[int] = ()) -> Iterator[list[int]]:
    """Count what autograd saves inside, each storage once, and drop it: there is no backward pass after this.

    Args:
        own: addresses of storages that are not counted.

    Yields:
        A list of one number, the bytes so far.
    """
    total = [0]
    # A weak reference keeps the identity of a storage, not its memory: what comes to lie where one was dropped is new.
    seen: dict[int, StorageWeakRef] = {}

    def pack(tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        if storage.data_ptr() not in own and reference.cdata not in seen:
            seen[reference.cdata] = reference
            total[0] += storage.nbytes()

    def unpack(_: None) -> torch.Tensor:
        raise RuntimeError("the saved tensors were counted and dropped")

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield total


def _as_the_job_would(trainer: Any, n_images: int | None) -> None:
    """Small batches, but the optimizer that `auto` becomes in the job: that follows from its number of updates.

    The number is that of BaseTrainer._build_train_pipeline; what follows from it stays Ultralytics' choice.
    """
    if n_images is not None:
        updates = math.ceil(n_images / max(trainer.batch_size, trainer.args.nbs)) * trainer.epochs
        trainer.build_optimizer = partial(_with_updates, trainer.build_optimizer, updates)
    trainer.batch_size = trainer.args.batch = N_IMAGES


def _with_updates(build: Any, updates: int, *args: Any, **kwargs: Any) -> Any:
    return build(*args, **{**kwargs, "iterations": updates})


def _loss(trainer: Any, batch: dict[str, Any]) -> Any:
    """Forward pass and loss as in the training loop, in fp32."""
    loss, _ = trainer.model(trainer.preprocess_batch(dict(batch)))
    return loss.sum()


def _resized(batch: dict[str, Any], side: int) -> dict[str, Any]:
    """The batch with smaller images, as multi_scale would make them; labels are shares of the image."""
    image = batch["img"]
    if max(image.shape[-2:]) <= max(side, SMALL_PX):
        return batch
    small = torch.nn.functional.interpolate(image.float(), size=(side, side)).to(image.dtype)
    return {**batch, "img": small}


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
