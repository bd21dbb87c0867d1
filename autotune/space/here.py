"""What do a job's own arguments give on this machine, what does a value become here, and what cannot be had?"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

from autotune.contract import Value
from autotune.space.context import CUDAGRAPH_MODES, Context, cache_fault, workers_cap

NO_BF16 = re.compile(r"\b(V100|P100|P40|P4|T4|K80|M60|GV100)\b|GTX|TITAN|Quadro|RTX 20\d\d")
"""GPUs older than compute capability 8.0, by name: NVML is read without CUDA."""


def arg(name: str) -> Callable[[Context], Value]:
    """The value of a YOLO argument."""
    return lambda ctx: ctx.train_args.get(name)


def no_argument(name: str, ctx: Context) -> str | None:
    """An Ultralytics without this argument, as a reason."""
    return None if name in ctx.train_args else f"the installed Ultralytics has no argument {name}"


def cuda_only(reason: str) -> Callable[[Context], str | None]:
    """A knob that is inert on CPU, with the reason."""
    return lambda ctx: reason if ctx.device == "cpu" else None


def at_most(limit: int, value: Value, what: str) -> str | None:
    """A number over its limit, as a reason."""
    return f"{what} {limit}" if isinstance(value, int) and value > limit else None


def batch_fits(value: Value, ctx: Context) -> str | None:
    """A batch larger than the training set would silently be cut down by the loader."""
    if ctx.n_images is None:
        return None
    return at_most(ctx.n_images // ctx.n_ranks, value, "the training set has images for a batch of")


def amp_baseline(ctx: Context) -> Value:
    """check_amp is False off CUDA, whatever was asked for."""
    return False if ctx.device == "cpu" else amp_clamp(ctx.train_args.get("amp"), ctx)


def amp_clamp(value: Value, _: Context) -> Value:
    """The two spellings of each precision are one."""
    if value in ("fp16", "fp32"):
        return value == "fp16"
    return value


def amp_fits(value: Value, ctx: Context) -> str | None:
    """An emulated bf16 is refused by Ultralytics at the first batch."""
    old = next((g.name for g in ctx.machine.gpus if NO_BF16.search(g.name)), None)
    return f"{old} has no native bf16" if value == "bf16" and old else None


def compile_blocked(ctx: Context) -> str | None:
    """No argument or no compiler."""
    return no_argument("compile", ctx) or (None if ctx.has_compiler else "torch.compile needs a C compiler, none found")


def compile_clamp(value: Value, ctx: Context) -> Value:
    """Without a compiler Ultralytics goes on uncompiled."""
    if compile_blocked(ctx):
        return False
    return "default" if value is True else value


def compile_fits(value: Value, ctx: Context) -> str | None:
    """CUDA graphs need one shape."""
    if value in CUDAGRAPH_MODES and ctx.train_args.get("multi_scale"):
        return "multi_scale changes the image size every step, CUDA graphs need one size"
    return None


def channels_last_baseline(ctx: Context) -> Value:
    """None is on for CUDA; the argument is ignored elsewhere."""
    if ctx.device == "cpu" or "channels_last" not in ctx.train_args:
        return False
    return ctx.train_args["channels_last"] is not False


def workers_clamp(value: Value, ctx: Context) -> Value:
    """Workers over the cap are cut down by Ultralytics."""
    return min(value, workers_cap(ctx)) if isinstance(value, int) else value


def cache_clamp(value: Value, ctx: Context) -> Value:
    """A cache that cannot fit is refused by Ultralytics, which goes on without."""
    mode: Value = "ram" if value is True else value or False
    return False if cache_fault(mode, ctx) else mode


def benchmark_blocked(ctx: Context) -> str | None:
    """Only cuDNN, and only with one shape."""
    if ctx.device == "cpu":
        return "cuDNN runs on GPUs only"
    return "multi_scale changes the image size every step" if ctx.train_args.get("multi_scale") else None


def alloc_baseline(ctx: Context) -> Value:
    """PYTORCH_CUDA_ALLOC_CONF wins where both names are set (KNOBS 1.8)."""
    return ctx.env.get("PYTORCH_CUDA_ALLOC_CONF") or ctx.env.get("PYTORCH_ALLOC_CONF") or None


@cache
def torch_mentions(file: str, word: str) -> bool:
    """Does this source file of the installed torch hold the word? This process never imports torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    source = Path(spec.origin).parent / file
    return source.is_file() and word in source.read_text(encoding="utf-8")


def _torch_has_nccl2() -> bool:
    return torch_mentions("distributed/distributed_c10d.py", "TORCH_DIST_USE_NCCL2")


def ddp_lacks(argument: str) -> str | None:
    """A torch whose DDP has no such argument."""
    there = torch_mentions("nn/parallel/distributed.py", argument)
    return None if there else f"DistributedDataParallel of the installed torch has no argument {argument}"


def no_nccl2(_: Context) -> str | None:
    """A torch with one process group for NCCL."""
    return None if _torch_has_nccl2() else "the installed torch has one process group for NCCL"


def nccl_backend_baseline(ctx: Context) -> Value:
    """Read once by torch, at import (distributed_c10d.py); "0" is the old one."""
    if ctx.n_ranks == 1 or ctx.device == "cpu":
        return None
    return "nccl2" if _torch_has_nccl2() and ctx.env.get("TORCH_DIST_USE_NCCL2") != "0" else "legacy"


def sgd_only(ctx: Context) -> str | None:
    """The optimizer that ran, or that was asked for."""
    name = str(ctx.effective.get("optimizer") or ctx.train_args.get("optimizer"))
    return None if name.lower() == "sgd" else f"the optimizer is {name}, not SGD"


def precision_blocked(ctx: Context) -> str | None:
    """TF32 came with compute capability 8.0, as bf16 did."""
    old = next((g.name for g in ctx.machine.gpus if NO_BF16.search(g.name)), None)
    return cuda_only("TF32 is a format of GPUs")(ctx) or (f"{old} has no TF32" if old else None)
