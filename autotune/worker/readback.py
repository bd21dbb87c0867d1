"""What is really in effect, read from where it acts and not from what was asked?"""

from __future__ import annotations

import math
import os
import sys
from typing import Any

import torch

from autotune.worker.nccl import nccl_in_effect
from autotune.worker.patches import compute, ddp, loader, loop
from autotune.worker.ranks import ranks_in_effect


def ready_batches(loader: Any) -> int:
    """Batches that lie ready in the loader; 0 without workers.

    Sums torch's private queues, each only where it exists: results of the workers, pinned batches, and batches that
    came out of order.
    """
    it = getattr(loader, "iterator", None)
    if it is None or not getattr(loader, "num_workers", 0):
        return 0
    results = getattr(it, "_worker_result_queue", None)
    data = getattr(it, "_data_queue", None)
    n = results.qsize() if results is not None else 0
    if data is not None and data is not results:
        n += data.qsize()
    return n + sum(1 for v in getattr(it, "_task_info", {}).values() if len(v) == 2)


def compiles() -> int:
    """Graphs that torch.compile has made in this process so far; 0 while nothing has been compiled."""
    dynamo = sys.modules.get("torch._dynamo.utils")  # importing it would cost seconds, and it is there when needed
    return 0 if dynamo is None else int(dynamo.counters["stats"]["unique_graphs"])


BUFFER_TOLERANCE = 0.10
"""Share of the decodes by which a window may differ from the job's steady state: a decode is an eighth to a half of the
loader's work (ULTRALYTICS 1.6), so this is at most 5 % of a data-bound step and 1 % of most."""


def buffer_steps(loader: Any, n_ranks: int = 1) -> int:
    """Steps that belong to the warm-up because the mosaic buffer still fills; 0 when it hardly matters.

    Each worker keeps the last B = min(n, 8 x batch, 1000) images that it decoded. MEASURING 1 gives the first epoch to
    the warm-up when n <= 4 B; what the buffer really does depends on the number of workers:

    One process sees every image once an epoch. In the first epoch none is found in the buffer; later the share found
    is about (B / n)**2 / 2 for B < n (an image drawn at time s of one epoch is still there at time t of the next when
    n - s + t < B, s and t uniform), and 1 for B = n. That is above the tolerance for n <= 2 B: wait one epoch.

    Several workers get random shares of an epoch, so an image is found with the probability r that it is among those
    its worker holds. r grows by (1 - r) / n an image, r(k) = 1 - exp(-k / n), up to B / n. Each of W workers must have
    seen k = -n ln(1 - (B / n - tolerance)) images, which takes W k / batch steps. Ranks get random shares as well: W
    counts the loading processes of all of them, and batch the images of all.
    """
    dataset = loader.dataset
    buffer = getattr(dataset, "max_buffer_length", 0) or 0
    if getattr(dataset, "cache", None) == "ram" or not buffer:
        return 0
    n, processes = len(dataset), max(loader.num_workers, 1) * n_ranks
    if processes == 1:
        return len(loader) if n <= 2 * buffer else 0
    missing = buffer / n - BUFFER_TOLERANCE
    return math.ceil(-processes * len(loader) * math.log(1 - missing)) if missing > 0 else 0


def resolved(trainer: Any) -> dict[str, Any]:
    """What 'auto' became: the optimizer's own numbers, in the words of YOLO's arguments.

    MuSGD from 'auto' starts at momentum 0.9 but warm-up drives it to args.momentum: that one is the user's.
    """
    group = trainer.optimizer.param_groups[0]
    name = type(trainer.optimizer).__name__
    momentum = group["betas"][0] if "betas" in group else group.get("momentum")
    return {
        "optimizer": trainer.args.optimizer if trainer.args.optimizer != "auto" else name,
        "lr0": trainer.args.lr0,
        "momentum": trainer.args.momentum if name == "MuSGD" else momentum,
        "warmup_bias_lr": trainer.args.warmup_bias_lr,
    }


def job(trainer: Any) -> dict[str, Any]:
    """Counts of the user's whole job, as this trainer would run it."""
    args, loader = trainer.args, trainer.train_loader
    decays = [g["weight_decay"] for g in trainer.optimizer.param_groups if g.get("weight_decay")]
    return {
        "n_images": len(loader.dataset),
        "n_batches": len(loader),
        "epochs": trainer.epochs,
        "n_closed_epochs": min(int(args.close_mosaic or 0), trainer.epochs),
        "nc": trainer.data.get("nc"),
        "batch": trainer.batch_size,
        "accumulate": trainer.accumulate,
        "nbs": args.nbs,
        "weight_decay": decays[0] if decays else 0.0,
        "gradient_bytes": sum(p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad),
        "mosaic_buffer": getattr(loader.dataset, "max_buffer_length", None),
        "torch": torch.__version__,
    }


def effective(trainer: Any, n_ranks: int) -> dict[str, Any]:
    """Knob -> what is in effect at this moment, read from where it acts and not from what was asked."""
    batches, dataset = trainer.train_loader, trainer.train_loader.dataset
    model = trainer.model
    # Ultralytics calls torch.compile on the model: the compiled wrapper keeps the original as _orig_mod.
    compiled = hasattr(model, "_orig_mod") or hasattr(getattr(model, "module", None), "_orig_mod")
    amp = trainer.amp and (trainer.args.amp if isinstance(trainer.args.amp, str) else True)
    cache = getattr(dataset, "cache", None)
    if cache is None:  # classification keeps two flags
        cache = (
            "ram" if getattr(dataset, "cache_ram", False) else "disk" if getattr(dataset, "cache_disk", False) else None
        )
    threads = os.environ.get("OMP_NUM_THREADS")
    on_cuda = trainer.device.type == "cuda"
    return {
        "batch_per_gpu": batches.batch_size or 0,
        "amp": {"fp16": True, "fp32": False}.get(amp, amp) if isinstance(amp, str) else bool(amp),
        "compile": (trainer.args.compile if isinstance(trainer.args.compile, str) else "default")
        if compiled
        else False,
        "channels_last": compute.is_channels_last(model),
        "workers": batches.num_workers,
        "cache": cache or False,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "prefetch_factor": batches.prefetch_factor if batches.num_workers else None,
        "pin_memory": batches.pin_memory,
        "val_workers": loader.val_workers_in_effect(trainer),
        "torch_threads": torch.get_num_threads(),
        "omp_num_threads": int(threads) if threads and threads.isdigit() else None,
        "alloc_conf": compute.alloc_conf_in_effect() if on_cuda else None,
        "fp32_precision": compute.fp32_precision_in_effect(),
        "activation_memory_budget": compute.activation_memory_budget_in_effect(compiled),
        "fused_sgd": compute.fused_sgd_in_effect(trainer),
        "log_every": loop.log_every_in_effect(trainer, int(os.environ.get("RANK", "0"))),
        "stride_on_cpu": loop.stride_on_cpu_in_effect(trainer),
        "gc_freeze": loop.gc_freeze_in_effect(),
        "empty_cache": loop.empty_cache_in_effect(trainer),
        **nccl_in_effect(os.environ),
        "optimizer": type(trainer.optimizer).__name__,
        "device": str(trainer.device),
        "device_name": torch.cuda.get_device_name(trainer.device) if on_cuda else None,
        "imgsz": trainer.args.imgsz,
        "mosaic_open": _mosaic_open(getattr(dataset, "transforms", None)),
        "epoch": trainer.epoch,
        "loss": _finite(trainer.loss),
        **(ddp.ddp_in_effect(trainer) | ranks_in_effect(trainer) if n_ranks > 1 else {}),
    }


def _mosaic_open(transforms: Any) -> bool:
    """True when some of the images are still made of four; closing sets the transform's probability to 0."""
    inner = getattr(transforms, "transforms", [])
    if type(transforms).__name__ == "Mosaic":
        return bool(transforms.p > 0)
    return any(_mosaic_open(t) for t in inner) if isinstance(inner, list) else False


def _finite(loss: Any) -> float | None:
    value = float(loss.detach()) if loss is not None else math.nan
    return value if math.isfinite(value) else None
