"""How does torch compute a step? Threads, kernels, layout, precision, recomputation, the optimizer's kernel."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch

from autotune.contract import Value
from autotune.worker.patches.replace import callback, replaced


@contextmanager
def torch_threads(trainer: Any, value: Value) -> Iterator[None]:
    """Threads of one operation; set again each epoch, since Ultralytics resets them where it selects a device."""
    stock = torch.get_num_threads()

    def set_them(_: Any) -> None:
        torch.set_num_threads(int(value or 1))

    set_them(trainer)
    try:
        with callback(trainer, "on_train_epoch_start", set_them):
            yield
    finally:
        torch.set_num_threads(stock)


@contextmanager
def cudnn_benchmark(_: Any, value: Value) -> Iterator[None]:
    """Let cuDNN time its algorithms for each new shape."""
    stock = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = bool(value)
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = stock


def channels_last(trainer: Any, value: Value) -> AbstractContextManager[None]:
    """NHWC weights on CPU, where Ultralytics ignores its argument; before optimizer and EMA are made from them."""

    def make(stock: Callable[..., Any]) -> Callable[..., Any]:
        def setup_model(*args: Any, **kwargs: Any) -> Any:
            ckpt = stock(*args, **kwargs)
            if value and trainer.device.type == "cpu":
                trainer.model = trainer.model.to(memory_format=torch.channels_last)
            return ckpt

        return setup_model

    return replaced(trainer, "setup_model", make)


@contextmanager
def fp32_precision(_: Any, value: Value) -> Iterator[None]:
    """What fp32 convolutions and matrix products are computed in: "tf32", or "ieee" for full fp32.

    torch's own default is tf32 for convolutions only. The new settings and the legacy `allow_tf32` flags must not be
    mixed (KNOBS 1.1: reading a legacy one then raises), so only the new ones are used; a torch without them keeps its
    own.
    """
    operations = _fp32_operations()
    stock = [o.fp32_precision for o in operations]
    for o in operations:
        o.fp32_precision = value
    try:
        yield
    finally:
        for o, before in zip(operations, stock, strict=True):
            o.fp32_precision = before


def _fp32_operations() -> list[Any]:
    conv, matmul = getattr(torch.backends.cudnn, "conv", None), torch.backends.cuda.matmul
    return [conv, matmul] if hasattr(conv, "fp32_precision") else []


def fp32_precision_in_effect() -> str | None:
    """tf32 or ieee when both kinds of operations have it; None for torch's own mixture."""
    values = {str(o.fp32_precision) for o in _fp32_operations()}
    return values.pop() if len(values) == 1 else None


def activation_memory_budget(_: Any, value: Value) -> AbstractContextManager[None]:
    """Share of the activations that torch.compile keeps for the backward pass; the rest is recomputed."""
    import torch._functorch.config as config

    if not hasattr(config, "activation_memory_budget"):
        return nullcontext()
    manager: AbstractContextManager[None] = config.patch(activation_memory_budget=float(value or 1.0))
    return manager


def activation_memory_budget_in_effect(compiled: bool) -> float | None:
    """The budget of compiled code; None when nothing is compiled."""
    config: Any = sys.modules.get("torch._functorch.config")
    budget = getattr(config, "activation_memory_budget", None)
    return float(budget) if compiled and budget is not None else None


def fused_sgd(trainer: Any, value: Value) -> AbstractContextManager[None]:
    """SGD by one fused kernel, asked for in its constructor, where GradScaler learns that it may stay on the device."""

    def make(stock: Callable[..., Any]) -> Callable[..., Any]:
        def build_optimizer(*args: Any, **kwargs: Any) -> Any:
            with replaced(torch.optim, "SGD", lambda sgd: partial(sgd, fused=True) if value else sgd):
                return stock(*args, **kwargs)

        return build_optimizer

    return replaced(trainer, "build_optimizer", make)


def fused_sgd_in_effect(trainer: Any) -> bool | None:
    """True with the fused kernel; None for another optimizer."""
    if type(trainer.optimizer) is not torch.optim.SGD:
        return None
    return all(bool(g.get("fused")) for g in trainer.optimizer.param_groups)


def is_channels_last(model: torch.nn.Module) -> bool:
    """True when the convolution weights lie in NHWC; 1x1 kernels and single channels cannot tell."""
    for p in model.parameters():
        if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1:
            return p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()
    return False


def alloc_conf_in_effect() -> str | None:
    """The CUDA allocator's setting as the environment gave it; PYTORCH_CUDA_ALLOC_CONF wins over the new name."""
    return os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or os.environ.get("PYTORCH_ALLOC_CONF") or None
