"""A job on a machine, made up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from autotune.contract import Gpu, Machine
from autotune.space.context import Context

ARGS = {
    "batch": 16,
    "nbs": 64,
    "weight_decay": 5e-4,
    "workers": 8,
    "imgsz": 640,
    "amp": True,
    "compile": False,
    "cache": False,
    "channels_last": None,
    "deterministic": True,
    "optimizer": "auto",
    "multi_scale": 0.0,
}
H100 = Gpu(index=0, uuid="GPU-0", name="NVIDIA H100 80GB HBM3", mem_bytes=80 << 30)


def _context(device: str = "cpu", *, args: dict[str, Any] | None = None, **more: Any) -> Context:
    cores = more.pop("n_cores", 4)
    machine = Machine(
        hostname="h",
        cpu="c",
        n_cores=cores,
        n_cores_host=more.pop("n_cores_host", cores),
        ram_bytes=more.pop("ram_bytes", 16 << 30),
        shm_bytes=None,
        gpus=more.pop("gpus", (H100,) if device == "cuda" else ()),
    )
    more = {"task": "detect", "has_compiler": True} | more
    return Context(machine=machine, device=device, train_args=ARGS | (args or {}), **more)


@pytest.fixture
def context() -> Callable[..., Context]:
    return _context
