"""Backend: which of Ultralytics' own trainers runs, made of which mixins, and what does it do in this trial?"""

from __future__ import annotations

import importlib
import os
import sys
from functools import partial
from typing import Any, Final

from ultralytics.utils import SETTINGS

from autotune.contract import TrialSpec
from autotune.worker.certificate import certify
from autotune.worker.cut_short import SegmentMixin, SegmentOverError
from autotune.worker.epoch_end import EpochEndMixin
from autotune.worker.epochs import record_epochs
from autotune.worker.losses import record_losses
from autotune.worker.patches import TuneMixin
from autotune.worker.probes import load_only, no_sync, replay
from autotune.worker.ranks import RanksMixin
from autotune.worker.readback import effective
from autotune.worker.recorder import Recorder
from autotune.worker.sizes import measure_sizes
from autotune.worker.trace import trace

TRAINERS: Final = {
    "detect": ("ultralytics.models.yolo.detect", "DetectionTrainer"),
    "segment": ("ultralytics.models.yolo.segment", "SegmentationTrainer"),
    "pose": ("ultralytics.models.yolo.pose", "PoseTrainer"),
    "obb": ("ultralytics.models.yolo.obb", "OBBTrainer"),
    "classify": ("ultralytics.models.yolo.classify", "ClassificationTrainer"),
}
INTEGRATIONS: Final = ("sync", "clearml", "comet", "dvc", "mlflow", "neptune", "raytune", "tensorboard", "wandb", "hub")


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
