"""How is Ultralytics' own trainer driven through a segment, or through a full training? Callbacks and mixins only."""

from __future__ import annotations

import importlib
import math
import os
import sys
import time
from typing import Any, Final

import torch
from ultralytics.utils import SETTINGS

from autotune.contract import TrialSpec
from autotune.worker.memory import peak_memory_bytes
from autotune.worker.patches import TuneMixin, alloc_conf_in_effect, is_channels_last
from autotune.worker.recorder import Recorder

TRAINERS: Final = {
    "detect": ("ultralytics.models.yolo.detect", "DetectionTrainer"),
    "segment": ("ultralytics.models.yolo.segment", "SegmentationTrainer"),
    "pose": ("ultralytics.models.yolo.pose", "PoseTrainer"),
    "obb": ("ultralytics.models.yolo.obb", "OBBTrainer"),
    "classify": ("ultralytics.models.yolo.classify", "ClassificationTrainer"),
}
INTEGRATIONS: Final = ("sync", "clearml", "comet", "dvc", "mlflow", "neptune", "raytune", "tensorboard", "wandb", "hub")


class SegmentOverError(BaseException):
    """Ends the training from a callback; a BaseException, so that no `except Exception` of the loop can swallow it."""


class SegmentMixin:
    """What a trial stubs out, none of which touches a steady step: validation, checkpoints, final evaluation, plots."""

    recorder: Recorder

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        me: Any = self
        self._images = 0
        self._batch_end = 0.0
        self._wait = 0.0
        me.add_callback("on_train_start", lambda _: self._on_train_start())
        me.add_callback("on_train_epoch_start", lambda _: self._on_epoch_start())
        me.add_callback("on_train_batch_start", lambda _: self._on_batch_start())
        me.add_callback("on_train_batch_end", lambda _: self._on_batch_end())

    def get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Training loader only: the validation loader would cost a scan and twice the workers."""
        me: Any = self
        mode = kwargs.get("mode", args[3] if len(args) > 3 else "train")
        return me.train_loader if mode == "val" else super().get_dataloader(*args, **kwargs)  # type: ignore[misc]

    def build_dataset(self, *args: Any, **kwargs: Any) -> Any:
        """Build the dataset, booking the time that its image cache takes."""
        import ultralytics.data.base as base

        recorder = self.recorder
        stock = base.BaseDataset.cache_images

        def timed(dataset: Any) -> None:
            t = time.perf_counter()
            stock(dataset)
            recorder.add_phase("cache", time.perf_counter() - t)

        base.BaseDataset.cache_images = timed
        try:
            return super().build_dataset(*args, **kwargs)  # type: ignore[misc]
        finally:
            base.BaseDataset.cache_images = stock

    def preprocess_batch(self, batch: dict[str, Any]) -> Any:
        """Count the images that the step is about to train on."""
        self._images = int(batch["img"].shape[0])
        return super().preprocess_batch(batch)  # type: ignore[misc]

    def validate(self) -> tuple[dict[str, float], None]:
        """Stub."""
        return {}, None

    def save_model(self) -> bool:
        """Stub."""
        return False

    def final_eval(self) -> None:
        """Stub."""

    def _on_train_start(self) -> None:
        me: Any = self
        self.recorder.resolved = resolved(me)
        self.recorder.job = job(me)
        segment = self.recorder.segment
        loader = me.train_loader
        segment.accumulate = me.accumulate
        segment.queue = loader.num_workers * (getattr(loader, "prefetch_factor", None) or 0)
        segment.buffer_steps = buffer_steps(loader)
        self.recorder.phase("build")
        self._batch_end = time.perf_counter()

    def _on_epoch_start(self) -> None:
        # Out of memory in epoch 1 would halve the batch and train on (trainer.py): with the retries used up it raises.
        me: Any = self
        me._oom_retries = 3

    def _on_batch_start(self) -> None:
        self._wait = time.perf_counter() - self._batch_end

    def _on_batch_end(self) -> None:
        me: Any = self
        now = time.perf_counter()
        step_s = now - self._batch_end
        self._batch_end = now
        loss = me.loss
        if loss is not None and not bool(torch.isfinite(loss.detach()).all()):
            # The progress line has read the loss already, so this costs no further device sync.
            raise FloatingPointError("the loss is NaN or infinite")
        over = self.recorder.step(
            wait_s=self._wait, step_s=step_s, images=self._images, ready=ready_batches(me.train_loader)
        )
        if over:
            self.recorder.effective = effective(me, self.recorder.spec.n_ranks)
            self.recorder.peak_mem_bytes = peak_memory_bytes(me.device)
            raise SegmentOverError


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


def buffer_steps(loader: Any) -> int:
    """Steps of the first epoch when they must not be measured because of the mosaic buffer; else 0.

    The buffer keeps the last B = min(n, 8 x batch, 1000) images decoded. In the first epoch no image is found in it;
    in later ones the share found is about (B / n)**2 / 2 for B < n (an image drawn at time s of one epoch is still
    there at time t of the next when n - s + t < B, s and t uniform). MEASURING 1 asks for a whole epoch when n <= 4 B;
    at n = 2 B that is 12 % of the decodes, which are a quarter of the loader's work: 3 %, the error we allow. So the
    rule here is n <= 2 B, which a batch of 64 on 1,280 images need not wait for.
    """
    dataset = loader.dataset
    buffer = getattr(dataset, "max_buffer_length", 0) or 0
    if getattr(dataset, "cache", None) == "ram" or not buffer:
        return 0
    return len(loader) if len(dataset) <= 2 * buffer else 0


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
        "mosaic_buffer": getattr(loader.dataset, "max_buffer_length", None),
        "torch": torch.__version__,
    }


def effective(trainer: Any, n_ranks: int) -> dict[str, Any]:
    """Knob -> what is in effect at this moment, read from where it acts and not from what was asked."""
    loader, dataset = trainer.train_loader, trainer.train_loader.dataset
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
    nccl = [os.environ.get(k) for k in ("NCCL_SOCKET_NTHREADS", "NCCL_NSOCKS_PERTHREAD")]
    on_cuda = trainer.device.type == "cuda"
    return {
        "batch_per_gpu": (loader.batch_size or 0) if n_ranks == 1 else trainer.batch_size // n_ranks,
        "amp": {"fp16": True, "fp32": False}.get(amp, amp) if isinstance(amp, str) else bool(amp),
        "compile": (trainer.args.compile if isinstance(trainer.args.compile, str) else "default")
        if compiled
        else False,
        "channels_last": is_channels_last(model),
        "workers": loader.num_workers,
        "cache": cache or False,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "prefetch_factor": loader.prefetch_factor if loader.num_workers else None,
        "torch_threads": torch.get_num_threads(),
        "omp_num_threads": int(threads) if threads and threads.isdigit() else None,
        "alloc_conf": alloc_conf_in_effect() if on_cuda else None,
        "nccl_socket": "x".join(str(v) for v in nccl) if all(nccl) else None,
        "optimizer": type(trainer.optimizer).__name__,
        "device": str(trainer.device),
        "device_name": torch.cuda.get_device_name(trainer.device) if on_cuda else None,
        "imgsz": trainer.args.imgsz,
        "mosaic_open": bool(getattr(dataset, "mosaic", True)),
        "epoch": trainer.epoch,
        "loss": _finite(trainer.loss),
    }


def _finite(loss: Any) -> float | None:
    value = float(loss.detach()) if loss is not None else math.nan
    return value if math.isfinite(value) else None


class Yolo:
    """Backend: one Ultralytics trainer in this process."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.trainer: Any = None

    def build(self, spec: TrialSpec) -> None:
        """Import the task's trainer and construct it on the user's arguments."""
        trial = spec.role != "train"
        if trial:
            SETTINGS.update({k: False for k in INTEGRATIONS if k in SETTINGS})
        module, name = TRAINERS[spec.task]
        stock = getattr(importlib.import_module(module), name)
        if trial:
            self.recorder.phase("import")
        bases = (SegmentMixin, TuneMixin, stock) if trial else (TuneMixin, stock)
        attrs = {"patches": spec.patches, "recorder": self.recorder}
        cls = type(f"Tune{name}", bases, attrs)
        self.trainer = cls(overrides=dict(spec.train_args))
        if not trial:
            self.trainer.add_callback("on_train_batch_end", _Asked(spec))

    def train(self, recorder: Recorder) -> None:
        """Train until the segment is over (trial) or to the end (role train)."""
        try:
            self.trainer.train()
        except SegmentOverError:
            return
        if recorder.spec.role != "train":
            raise RuntimeError(
                f"the training ended after {len(recorder.segment.steps.end_s)} steps, before a segment was measured"
            )

    def effective(self) -> dict[str, Any]:
        """See the function of this name."""
        return effective(self.trainer, self.recorder.spec.n_ranks)

    def close(self) -> None:
        """Shut the loader's workers down; whatever is left the supervisor kills."""
        loader = getattr(self.trainer, "train_loader", None)
        if loader is not None and hasattr(loader, "close"):
            loader.close()


class _Asked:
    """Full training prints once, after its first step, what was asked and what is in effect."""

    def __init__(self, spec: TrialSpec) -> None:
        self.spec = spec
        self.done = False

    def __call__(self, trainer: Any) -> None:
        if self.done:
            return
        self.done = True
        real = effective(trainer, self.spec.n_ranks)
        lines = ["autotune: asked -> in effect"]
        for knob, asked in self.spec.params.items():
            mark = "" if real.get(knob) == asked else "   <- differs"
            lines.append(f"  {knob}: {asked} -> {real.get(knob)}{mark}")
        sys.stderr.write("\n".join(lines) + "\n")


def make(recorder: Recorder) -> Yolo:
    """Table entry of backends.BACKENDS."""
    return Yolo(recorder)
