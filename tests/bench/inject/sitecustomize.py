"""Slows every training step of the process by a share: SLOWDOWN_FRAC=0.03 sleeps 3 % of the median step (power.py)."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import time
from itertools import pairwise
from statistics import median
from types import ModuleType
from typing import Any

TARGET = "ultralytics.engine.trainer"


def _slow(trainer: Any, frac: float) -> None:
    """Sleep at the start of each batch; the share is of a step without the sleep."""
    ends: list[float] = []
    slept = [0.0]

    def before(_: Any) -> None:
        if len(ends) > 3:
            slept[0] = max(0.0, (median(b - a for a, b in pairwise(ends[-20:])) - slept[0]) * frac)
            time.sleep(slept[0])

    trainer.add_callback("on_train_batch_start", before)
    trainer.add_callback("on_train_batch_end", lambda _: ends.append(time.perf_counter()))


class _Hook(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Wraps the trainer's constructor when its module is imported, and only then."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        if name != TARGET:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        self.real = spec.loader
        spec.loader = self
        return spec

    def exec_module(self, module: ModuleType) -> None:
        self.real.exec_module(module)
        stock = module.BaseTrainer.__init__

        def init(trainer: Any, *args: Any, **kwargs: Any) -> None:
            stock(trainer, *args, **kwargs)
            _slow(trainer, float(os.environ["SLOWDOWN_FRAC"]))

        module.BaseTrainer.__init__ = init


if float(os.environ.get("SLOWDOWN_FRAC", "0")) > 0:
    sys.meta_path.insert(0, _Hook())
