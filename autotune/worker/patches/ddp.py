"""How is the model wrapped for several ranks, and how do they talk? Arguments, order, the unused-parameter probe."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel.distributed import DistributedDataParallel

from autotune.contract import Value
from autotune.worker.patches.probe import unused_on_any_rank
from autotune.worker.patches.replace import callback, replaced

log = logging.getLogger(__name__)

BLOCKING_WAIT: Final = "TORCH_NCCL_BLOCKING_WAIT"


@contextmanager
def _constructor(change: Callable[[nn.Module, dict[str, Any]], nn.Module]) -> Iterator[None]:
    """DDP made inside is a subclass whose constructor first passes module and keywords through `change`.

    A subclass, so that isinstance of the same name stays true; of the present one, so that several of these stack.
    """

    def make(stock: type[DistributedDataParallel]) -> type[DistributedDataParallel]:
        class TunedDDP(stock):  # type: ignore[valid-type,misc]
            def __init__(self, module: nn.Module, *args: Any, **kwargs: Any) -> None:
                super().__init__(change(module, kwargs), *args, **kwargs)

        return TunedDDP

    with replaced(nn.parallel, "DistributedDataParallel", make):
        yield


def _has(argument: str) -> bool:
    """Does torch's DDP take this argument? If not, a warning, and the effective value will differ."""
    there = argument in inspect.signature(DistributedDataParallel.__init__).parameters
    if not there:
        log.warning("torch's DistributedDataParallel has no argument %s here: it is left out", argument)
    return there


def ddp_argument(name: str) -> Callable[[Any, Value], Any]:
    """The patch that sets one argument of DDP."""

    @contextmanager
    def manager(_: Any, value: Value) -> Iterator[None]:
        def change(module: nn.Module, kwargs: dict[str, Any]) -> nn.Module:
            if _has(name):
                kwargs[name] = value
            return module

        with _constructor(change):
            yield

    return manager


@contextmanager
def find_unused_parameters(trainer: Any, value: Value) -> Iterator[None]:
    """False spares each backward pass a walk of the graph; only where the probe finds a gradient for every parameter.

    Under torch.compile Ultralytics passes False by itself, and nothing is probed.
    """

    def change(module: nn.Module, kwargs: dict[str, Any]) -> nn.Module:
        if value or not kwargs.get("find_unused_parameters"):
            kwargs["find_unused_parameters"] = bool(value)
        elif unused := unused_on_any_rank(trainer, module):
            log.warning("find_unused_parameters stays True: no gradient for %s", unused)
        else:
            kwargs["find_unused_parameters"] = False
        return module

    with _constructor(change):
        yield


@contextmanager
def static_graph(trainer: Any, value: Value) -> Iterator[None]:
    """DDP learns the graph from the first step and relies on it; not where an object-less batch has another graph.

    The search for unused parameters is then DDP's own, once: passing find_unused_parameters too only draws a warning.
    """

    def change(module: nn.Module, kwargs: dict[str, Any]) -> nn.Module:
        if not _has("static_graph") or bool(kwargs.get("static_graph")) is bool(value):
            return module
        if value and (unused := unused_on_any_rank(trainer, module)):
            log.warning("static_graph stays False: no gradient for %s", unused)
            return module
        kwargs["static_graph"] = bool(value)
        if value:
            kwargs["find_unused_parameters"] = False
        return module

    with _constructor(change):
        yield


@contextmanager
def ddp_wrap(trainer: Any, value: Value) -> Iterator[None]:
    """compiled_ddp: torch.compile(DDP(model)) in place of Ultralytics' DDP(torch.compile(model)).

    In the stock order the backward pass is one graph, all gradients are ready at its end, and no reduction overlaps it
    (KNOBS 0.13); compiled around DDP, torch cuts the graph at the buckets. That needs static_graph=False. Without
    compile nothing changes.
    """
    mode: list[str] = []

    def change(module: nn.Module, kwargs: dict[str, Any]) -> nn.Module:
        inner = getattr(module, "_orig_mod", None)
        if value != "compiled_ddp" or not isinstance(inner, nn.Module):
            return module
        mode.append(trainer.args.compile if isinstance(trainer.args.compile, str) else "default")
        kwargs.pop("static_graph", None)
        return inner

    def compile_around(_: Any) -> None:
        if mode:
            trainer.model = torch.compile(trainer.model, mode=mode.pop(), backend="inductor")

    with _constructor(change), callback(trainer, "on_pretrain_routine_end", compile_around):
        yield


@contextmanager
def blocking_wait(_: Any, value: Value) -> Iterator[None]:
    """Whether the host waits inside NCCL's collectives: _setup_ddp sets it to 1, and the process group reads it."""
    before = os.environ.get(BLOCKING_WAIT)

    def make(stock: Callable[..., None]) -> Callable[..., None]:
        def init_process_group(*args: Any, **kwargs: Any) -> None:
            os.environ[BLOCKING_WAIT] = str(int(bool(value)))
            stock(*args, **kwargs)

        return init_process_group

    try:
        with replaced(dist, "init_process_group", make):
            yield
    finally:
        os.environ.pop(BLOCKING_WAIT, None)
        if before is not None:
            os.environ[BLOCKING_WAIT] = before


def ddp_of(model: nn.Module) -> DistributedDataParallel | None:
    """The DDP object of a model, also under torch.compile; None when it is not wrapped."""
    for m in (model, getattr(model, "_orig_mod", None)):
        if isinstance(m, DistributedDataParallel):
            return m
    return None


def _nccl_backend() -> str | None:
    """nccl2 or legacy, by the class that reduces CUDA tensors (KNOBS 0.1); None for another library, or unknown."""
    if not str(dist.get_backend()).startswith("nccl"):
        return None
    group = dist.distributed_c10d._get_default_group()
    name = type(group._get_backend(torch.device("cuda"))).__name__
    return {"ProcessGroupNCCL2": "nccl2", "ProcessGroupNCCL": "legacy"}.get(name)


def ddp_in_effect(trainer: Any) -> dict[str, Any]:
    """Knob -> what the DDP object, the process group and the reductions so far show; empty for one rank."""
    ddp = ddp_of(trainer.model)
    if ddp is None:
        return {}
    default_cap = getattr(ddp, "bucket_bytes_cap_default", False)
    outer = hasattr(trainer.model, "_orig_mod")
    inner = hasattr(ddp.module, "_orig_mod")
    sync = getattr(trainer, "grad_sync", None)
    return {
        "bucket_cap_mb": None if default_cap else ddp.bucket_bytes_cap // 2**20,
        "gradient_as_bucket_view": ddp.gradient_as_bucket_view,
        "static_graph": ddp.static_graph,
        "find_unused_parameters": ddp.find_unused_parameters,
        "batched_grad_copy": getattr(ddp, "batched_grad_copy", None),
        "ddp_wrap": "compiled_ddp" if outer else "ddp_of_compiled" if inner else None,
        "no_sync": sync is not None and sync.in_effect,
        "blocking_wait": {"1": True, "0": False}.get(os.environ.get(BLOCKING_WAIT, "")),
        "nccl_backend": _nccl_backend(),
    }
