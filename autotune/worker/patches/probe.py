"""Does every parameter get a gradient, even from images without objects? One forward and backward pass tells."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import nn

log = logging.getLogger(__name__)

N_IMAGES: Final = 2
"""BatchNorm needs more than one value a channel; two images are enough at any size."""


def object_less_batch(trainer: Any) -> dict[str, torch.Tensor]:
    """Black images without objects, in the form that the task's loss takes (ultralytics/utils/loss.py).

    The image side is twice the model's largest stride. Classification knows no image without a class: class 0.
    """
    device, model = trainer.device, trainer.model
    side = 2 * max(int(_unwrapped(model).stride.max()), 32)
    zeros = torch.zeros
    batch = {
        "img": zeros(N_IMAGES, trainer.data.get("channels", 3), side, side, device=device),
        "batch_idx": zeros(0, device=device),
        "cls": zeros(0, 1, device=device),
        "bboxes": zeros(0, 5 if trainer.args.task == "obb" else 4, device=device),
    }
    if trainer.args.task == "classify":
        batch["cls"] = zeros(N_IMAGES, dtype=torch.long, device=device)
    elif trainer.args.task == "segment":
        # A mask is a quarter of the image; overlapping ones share one plane, and 0 is background.
        batch["masks"] = zeros(N_IMAGES, side // 4, side // 4, device=device)
        batch["sem_masks"] = zeros(N_IMAGES, side // 4, side // 4, device=device)
    elif trainer.args.task == "pose":
        batch["keypoints"] = zeros(0, *trainer.data["kpt_shape"], device=device)
    return batch


def unused_parameters(model: nn.Module, batch: dict[str, torch.Tensor]) -> list[str]:
    """Names of the parameters that take part in no gradient of this batch's loss; the model is left as it was.

    Buffers (the statistics of BatchNorm), gradients, the criterion, train or eval and the random states are put back.
    """
    with _as_it_was(model, batch["img"].device):
        model.train()
        loss = model(batch)[0]
        loss.sum().backward()
        return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def unused_on_any_rank(trainer: Any, module: nn.Module) -> str:
    """The first unused parameters of this rank, or a word for those of another; empty when there are none anywhere.

    A loss that cannot be computed so proves nothing, and counts as unused. All ranks must call this together.
    """
    try:
        unused = unused_parameters(_unwrapped(module), object_less_batch(trainer))
    except Exception as e:  # of whatever a task's loss asks for; training goes on as stock
        log.warning("cannot probe for unused parameters: %s: %s", type(e).__name__, e)
        unused = ["any (the probe failed)"]
    said = ", ".join(unused[:3])
    if dist.is_initialized():
        flag = torch.tensor(int(bool(unused)), device=trainer.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        said = said or ("a parameter of another rank" if flag.item() else "")
    return said


def _unwrapped(model: Any) -> Any:
    from ultralytics.utils.torch_utils import unwrap_model

    return unwrap_model(model)


@contextmanager
def _as_it_was(model: nn.Module, device: torch.device) -> Iterator[None]:
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    grads = [p.grad for p in model.parameters()]
    modes = [(m, m.training) for m in model.modules()]
    had_criterion, criterion = hasattr(model, "criterion"), getattr(model, "criterion", None)
    for p in model.parameters():
        p.grad = None
    try:
        # Every generator a forward pass may use: the CPU's, and that of the GPU in question.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for b, before in buffers:
            b.data.copy_(before)
        for p, grad in zip(model.parameters(), grads, strict=True):
            p.grad = grad
        for m, training in modes:
            m.training = training
        if had_criterion:
            model.criterion = criterion  # type: ignore[assignment]
        elif hasattr(model, "criterion"):
            del model.criterion
