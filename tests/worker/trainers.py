"""Real trainers, in this process, on the smallest model: a step takes a few milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import record_function
from ultralytics.models.yolo.detect import DetectionTrainer

from autotune.contract import SegmentSettings, TrialDir
from autotune.worker.cut_short import SegmentMixin, SegmentOverError
from autotune.worker.patches import TuneMixin
from autotune.worker.recorder import Recorder
from tests.run.trials import spec

TINY = str(Path(__file__).with_name("tiny.yaml"))
DELAY_S = 0.05


def train(folder: Path, data: Path, n_steps: int, stock: type = DetectionTrainer, **args: Any) -> tuple[Recorder, Any]:
    """Train until `n_steps` have been measured; returns what was recorded, and the trainer.

    `wait_steady=True` warms up by the rules; otherwise measuring begins after the second step.
    """
    patches = {"torch_threads": 1, **args.pop("patches", {})}
    settings = SegmentSettings(
        warmup_steps=4,
        warmup_s=0.0,
        warmup_cap_s=60.0 if args.pop("wait_steady", False) else 0.0,
        measure_s=0.0,
        measure_steps=n_steps,
        measure_cap_s=1e9,
    )
    given = {"model": TINY, "imgsz": 32, "batch": 4, "nbs": 4, "save_dir": str(folder / "yolo"), **args}
    certify = given.pop("certify", False)
    asked = replace(spec(data, patches=patches, segment=settings, **given), certify=certify)
    directory = TrialDir(folder)
    folder.mkdir(parents=True, exist_ok=True)
    recorder = Recorder(asked, directory)
    cls = type("T", (SegmentMixin, TuneMixin, stock), {"patches": patches, "recorder": recorder})
    trainer: Any = cls(overrides=dict(asked.train_args))
    try:
        trainer.train()
    except SegmentOverError:
        pass
    else:
        raise AssertionError("the training ended before the segment did")
    finally:
        recorder.write()
        trainer.train_loader.close()
        torch.use_deterministic_algorithms(False)
    return recorder, trainer


class Collate:
    """The dataset's own, in whatever process the loader runs it; sleeps for the batches that are due."""

    def __init__(self, stock: Callable[[Any], Any], delay_s: Callable[[int], float]) -> None:
        self.stock, self.delay_s, self.n = stock, delay_s, 0

    def __call__(self, batch: Any) -> Any:
        time.sleep(self.delay_s(self.n))
        self.n += 1
        return self.stock(batch)


class DelayedTrainer(DetectionTrainer):
    """Sleeps 50 ms in one part of every other step; `schedule` says where, by number of the step."""

    schedule: tuple[str | None, ...] = ()
    loader_base_s = 0.0

    def due(self, part: str, step: int | None = None) -> float:
        step = self.n - 1 if step is None else step
        return DELAY_S if self.schedule[step % len(self.schedule)] == part else 0.0

    def build_dataset(self, *args: Any, **kwargs: Any) -> Any:
        dataset = super().build_dataset(*args, **kwargs)
        dataset.collate_fn = Collate(dataset.collate_fn, lambda i: self.loader_base_s + self.due("wait", i))
        return dataset

    def get_model(self, *args: Any, **kwargs: Any) -> Any:
        model = super().get_model(*args, **kwargs)
        self.n = 0
        model.model[0].register_forward_pre_hook(
            lambda m, _: time.sleep(self.due("forward")) if self.n and m.training else None
        )
        model.model[1].register_full_backward_hook(lambda *_: time.sleep(self.due("backward")))
        return model

    def preprocess_batch(self, batch: dict[str, Any]) -> Any:
        self.n += 1
        time.sleep(self.due("prepare"))
        return super().preprocess_batch(batch)

    def optimizer_step(self) -> None:
        time.sleep(self.due("optimizer"))
        super().optimizer_step()


class CountingTrainer(DetectionTrainer):
    """Counts the images decoded for each batch, where they are decoded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.decodes: list[int] = []
        super().__init__(*args, **kwargs)

    def build_dataset(self, *args: Any, **kwargs: Any) -> Any:
        dataset = super().build_dataset(*args, **kwargs)
        load, collate = dataset.load_image, dataset.collate_fn
        decoded: list[int] = []

        def counted_load(i: int, *more: Any, **named: Any) -> Any:
            if dataset.ims[i] is None:
                decoded.append(i)
            return load(i, *more, **named)

        def counted_collate(samples: Any) -> Any:
            batch = collate(samples) | {"decodes": len(decoded)}
            decoded.clear()
            return batch

        dataset.load_image, dataset.collate_fn = counted_load, counted_collate
        return dataset

    def preprocess_batch(self, batch: dict[str, Any]) -> Any:
        self.decodes.append(batch.pop("decodes"))
        return super().preprocess_batch(batch)


class RangesTrainer(DetectionTrainer):
    """Marks its parts for torch.profiler, by its own means."""

    def preprocess_batch(self, batch: dict[str, Any]) -> Any:
        with record_function("test prepare"):
            return super().preprocess_batch(batch)

    def get_model(self, *args: Any, **kwargs: Any) -> Any:
        model = super().get_model(*args, **kwargs)
        forward = model.forward

        def ranged(x: Any, *more: Any, **named: Any) -> Any:
            if not isinstance(x, dict):  # the network alone, called from within the loss
                return forward(x, *more, **named)
            with record_function("test forward"):
                return forward(x, *more, **named)

        model.forward = ranged
        return model

    def optimizer_step(self) -> None:
        with record_function("test optimizer"):
            super().optimizer_step()
