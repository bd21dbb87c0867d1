"""How is Ultralytics' own trainer driven through a segment, or through a full training? Callbacks and mixins only."""

from __future__ import annotations

import importlib
import math
import os
import sys
import time
from dataclasses import replace
from functools import partial
from typing import Any, Final

from ultralytics.utils import SETTINGS

from autotune.contract import TrialSpec
from autotune.worker.certificate import certify
from autotune.worker.epochs import record_epochs
from autotune.worker.losses import record_losses
from autotune.worker.memory import forward_as_validation, peak_memory_bytes
from autotune.worker.patches import TuneMixin
from autotune.worker.probes import load_only, no_sync, replay
from autotune.worker.ranks import RanksMixin
from autotune.worker.readback import buffer_steps, compiles, effective, job, ready_batches, resolved
from autotune.worker.recorder import Recorder
from autotune.worker.sizes import measure_sizes
from autotune.worker.timing import StepClock, stamp_of
from autotune.worker.trace import trace

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
        self._clock = StepClock(self.recorder.segment.steps, stamp_of(me.device), held=self.recorder.spec.n_ranks > 1)
        me.add_callback("on_train_start", lambda _: self._on_train_start())
        me.add_callback("on_train_epoch_start", lambda _: self._on_epoch_start())
        me.add_callback("on_train_batch_start", lambda _: self._clock.batch_start())
        me.add_callback("on_train_batch_end", lambda _: self._on_batch_end())
        me.add_callback("on_fit_epoch_end", lambda _: self._on_epoch_end())

    def get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Training loader only, but for a certificate: that of validation would cost a scan and twice the workers."""
        me: Any = self
        mode = kwargs.get("mode", args[3] if len(args) > 3 else "train")
        stub = mode == "val" and self.recorder.spec.probe != "certificate"
        return me.train_loader if stub else super().get_dataloader(*args, **kwargs)  # type: ignore[misc]

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
        """Count the images that the step is about to train on; the forward pass begins when they are prepared."""
        self._images = int(batch["img"].shape[0])
        with self._clock.part("prepare_s"):
            prepared = super().preprocess_batch(batch)  # type: ignore[misc]
        self._clock.begin("forward_s")
        return prepared

    def optimizer_step(self) -> None:
        """The trainer's own, with clipping and EMA, timed."""
        with self._clock.part("optimizer_s"):
            super().optimizer_step()  # type: ignore[misc]

    def validate(self) -> tuple[dict[str, float], None]:
        """Stub."""
        return {}, None

    def really_validate(self) -> Any:
        """The trainer's own."""
        return super().validate()  # type: ignore[misc]

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
        segment.steps = replace(segment.steps, turn=max(loader.num_workers, 1))  # the clock keeps the same lists
        segment.queue = loader.num_workers * (getattr(loader, "prefetch_factor", None) or 0)
        segment.buffer_steps = buffer_steps(loader, self.recorder.spec.n_ranks)
        self.recorder.job["buffer_steps"] = segment.buffer_steps
        # The mosaic is as the job has it where the segment begins; a small dataset must not reach its end (the last
        # close_mosaic epochs) within a segment, nor the end of the training: other data, or no measurement at all.
        if me.epochs > (me.args.close_mosaic or 0):
            me.args.close_mosaic = 0
        self._clock.follow_backward(me.scaler)
        self.recorder.phase("build")
        self.recorder.begin("first_step")
        self._clock.start()

    def _on_epoch_start(self) -> None:
        # Out of memory in epoch 1 would halve the batch and train on (trainer.py): with the retries used up it raises.
        me: Any = self
        me._oom_retries = 3
        self._clock.wait_from_here()

    def _on_epoch_end(self) -> None:
        # Only the segment ends a trial, not the last epoch of a short job.
        me: Any = self
        me.stop = False

    def _on_batch_end(self) -> None:
        me: Any = self
        wait_s, step_s = self._clock.batch_end()
        # Only rank 0's progress line waits for the device, where it is due, so only then this read finds the value
        # ready; a NaN of another rank is in everybody's gradients, and so in rank 0's next losses.
        read = self.recorder.rank == 0 and me.loss is not None and me.loss_is_read()
        if read and not math.isfinite(float(me.loss.detach())):
            raise FloatingPointError("the loss is NaN or infinite")
        over = self.recorder.step(
            wait_s=wait_s,
            step_s=step_s,
            images=self._images,
            ready=ready_batches(me.train_loader),
            compiles=compiles(),
        )
        if over:
            self._clock.finish()
            self.recorder.effective = effective(me, self.recorder.spec.n_ranks)
            if me.loss is not None and self.recorder.effective["loss"] is None:  # where no line was due any more
                raise FloatingPointError("the loss is NaN or infinite")
            if self.recorder.spec.certify:
                forward_as_validation(me)
            self.recorder.peak_mem_bytes = peak_memory_bytes(me.device)
            self._on_segment_over()
        self._clock.wait_from_here()

    def _on_segment_over(self) -> None:
        raise SegmentOverError


class Yolo:
    """Backend: one Ultralytics trainer in this process."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.trainer: Any = None

    def build(self, spec: TrialSpec) -> None:
        """Import the task's trainer and construct it on the user's arguments."""
        trial = spec.role != "train"
        if trial or spec.private:
            SETTINGS.update({k: False for k in INTEGRATIONS if k in SETTINGS})
        module, name = TRAINERS[spec.task]
        stock = getattr(importlib.import_module(module), name)
        if trial:
            self.recorder.phase("import")
            self.recorder.begin("build")
        bases: tuple[type, ...] = (SegmentMixin, TuneMixin, stock) if trial else (TuneMixin, stock)
        if spec.probe == "epoch_end":
            from autotune.worker.epoch_end import EpochEndMixin  # which is a SegmentMixin

            bases = (EpochEndMixin, TuneMixin, stock)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            bases = (*bases[:-1], RanksMixin, stock)
        attrs = {"patches": spec.patches, "recorder": self.recorder, "tolerant": not trial}
        cls = type(f"Tune{name}", bases, attrs)
        self.trainer = cls(overrides=dict(spec.train_args))
        if not trial:
            self.trainer.add_callback("on_train_start", lambda _: setattr(self.recorder, "training", True))
            self.trainer.add_callback("on_train_batch_end", _Asked(spec))
            if self.recorder.rank == 0:
                record_epochs(self.trainer, self.recorder.directory.epochs)

    def train(self, recorder: Recorder) -> None:
        """Train until the segment is over (trial) or to the end (role train)."""
        if recorder.spec.probe == "data":
            with self.trainer.patched():
                load_only(self.trainer, recorder)
            return
        if recorder.spec.probe == "sizes":
            measure_sizes(self.trainer, recorder)
            return
        if recorder.spec.probe == "compute":
            self.trainer.add_callback("on_train_start", partial(replay, recorder=recorder))
        if recorder.spec.probe == "no_sync":
            self.trainer.add_callback("on_train_batch_end", no_sync)
        if recorder.spec.probe == "losses":
            record_losses(self.trainer, recorder, over=SegmentOverError)
        if recorder.spec.probe == "certificate":
            certify(self.trainer, recorder, over=SegmentOverError)
        if recorder.spec.trace_steps:
            trace(self.trainer, recorder, over=SegmentOverError)
        try:
            self.trainer.train()
        except SegmentOverError:
            return
        if recorder.spec.role != "train":
            raise RuntimeError(
                f"the training ended after {len(recorder.segment.steps.end_s)} steps, before a segment was measured"
            )

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
        if self.done or int(os.environ.get("RANK", "0")) > 0:
            return
        self.done = True
        # Of all machines together: the spec counts the ranks of this one.
        real = effective(trainer, int(os.environ.get("WORLD_SIZE", "1")))
        lines = ["autotune: asked -> in effect"]
        for knob, asked in self.spec.params.items():
            # None: inert in this combination, so whatever Ultralytics does is as asked.
            mark = "" if asked is None or real.get(knob) == asked else "   <- differs"
            lines.append(f"  {knob}: {asked} -> {real.get(knob)}{mark}")
        sys.stderr.write("\n".join(lines) + "\n")


def make(recorder: Recorder) -> Yolo:
    """Table entry of backends.BACKENDS."""
    return Yolo(recorder)
