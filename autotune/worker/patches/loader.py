"""How are the loaders built that Ultralytics gives no argument for?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import ultralytics.data.build as build

from autotune.contract import Value
from autotune.worker.patches.replace import replaced

VAL_PREFETCH: Final = 2
"""Ultralytics' own for validation (data/build.py)."""


def _each_loader(trainer: Any, change: Callable[[str, dict[str, Any]], None]) -> AbstractContextManager[None]:
    """Loaders that this trainer builds inside have their arguments changed by `change(mode, arguments)` first."""

    def make(stock: Callable[..., Any]) -> Callable[..., Any]:
        def get_dataloader(*args: Any, **kwargs: Any) -> Any:
            mode = kwargs.get("mode", args[3] if len(args) > 3 else "train")

            def changed(loader: Callable[..., Any]) -> Callable[..., Any]:
                def construct(*own: Any, **arguments: Any) -> Any:
                    change(mode, arguments)
                    return loader(*own, **arguments)

                return construct

            with replaced(build, "InfiniteDataLoader", changed):
                return stock(*args, **kwargs)

        return get_dataloader

    return replaced(trainer, "get_dataloader", make)


@contextmanager
def workers(trainer: Any, value: Value) -> Iterator[None]:
    """Loader workers on CPU, where the constructor sets them to 0; the loaders are built later from args."""
    stock = trainer.args.workers
    trainer.args.workers = int(value or 0)
    try:
        yield
    finally:
        trainer.args.workers = stock


def prefetch_factor(trainer: Any, value: Value) -> AbstractContextManager[None]:
    """Batches a training worker prepares ahead (hard-coded 4, data/build.py); without workers torch allows none."""

    def change(mode: str, arguments: dict[str, Any]) -> None:
        if mode == "train" and arguments.get("num_workers"):
            arguments["prefetch_factor"] = value

    return _each_loader(trainer, change)


def pin_memory(trainer: Any, value: Value) -> AbstractContextManager[None]:
    """Whether batches are copied to page-locked memory before they go to the GPU; Ultralytics always does."""

    def change(_: str, arguments: dict[str, Any]) -> None:
        arguments["pin_memory"] = value

    return _each_loader(trainer, change)


def val_workers(trainer: Any, value: Value) -> AbstractContextManager[None]:
    """Workers of the validation loader, for which Ultralytics takes twice those of training."""

    def change(mode: str, arguments: dict[str, Any]) -> None:
        if mode == "val":
            arguments["num_workers"] = value
            arguments["prefetch_factor"] = (arguments.get("prefetch_factor") or VAL_PREFETCH) if value else None

    return _each_loader(trainer, change)


def val_workers_in_effect(trainer: Any) -> int | None:
    """Workers of the validation loader; None in a trial, which builds none."""
    loader = getattr(trainer, "test_loader", None)
    return None if loader is None or loader is trainer.train_loader else int(loader.num_workers)
