"""How is Ultralytics' own trainer driven through a segment, and stopped after it? Callbacks and a mixin only."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

from autotune.worker.certificate import certify_after
from autotune.worker.memory import peak_memory_bytes
from autotune.worker.readback import buffer_steps, compiles, effective, job, ready_batches, resolved
from autotune.worker.recorder import Recorder
from autotune.worker.timing import StepClock, stamp_of


class SegmentOverError(BaseException):
    """Ends the training from a callback; a BaseException, so that no `except Exception` of the loop can swallow it."""


class SegmentMixin:
    """What a trial stubs out, none of which touches a steady step: validation, checkpoints, final evaluation, plots."""

    recorder: Recorder

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        me: Any = self
        self._images = 0
        self._over = False
        """The segment is; what still runs is the certificate, which nobody times."""
        self._clock = StepClock(self.recorder.segment.steps, stamp_of(me.device), held=self.recorder.spec.n_ranks > 1)
        me.add_callback("on_train_start", lambda _: self._on_train_start())
        me.add_callback("on_train_epoch_start", lambda _: self._on_epoch_start())
        me.add_callback("on_train_batch_start", lambda _: self._clock.batch_start())
        me.add_callback("on_train_batch_end", lambda _: None if self._over else self._on_batch_end())
        me.add_callback("on_fit_epoch_end", lambda _: self._on_epoch_end())

    def get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Training loader only, but for a certificate: that of validation would cost a scan and twice the workers."""
        me: Any = self
        mode = kwargs.get("mode", args[3] if len(args) > 3 else "train")
        stub = mode == "val" and self.recorder.spec.probe != "certificate" and not self.recorder.spec.certify
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
            self.recorder.peak_mem_bytes = peak_memory_bytes(me.device)
            if self.recorder.spec.certify:
                self._over = True
                certify_after(me, self.recorder, over=SegmentOverError)
                return
            self._on_segment_over()
        self._clock.wait_from_here()

    def _on_segment_over(self) -> None:
        raise SegmentOverError
