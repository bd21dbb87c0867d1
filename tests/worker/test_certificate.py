"""Probe `certificate` on real Ultralytics trainings: is what it runs really the worst of the job?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics.models.yolo.classify import ClassificationTrainer
from ultralytics.models.yolo.detect import DetectionTrainer

from autotune.contract import Outcome, TrialDir, TrialResult
from autotune.run.demo import demo_dataset
from autotune.run.trial import run_trial
from autotune.worker.certificate import certify, crowded_batch, most_crowded
from autotune.worker.cut_short import SegmentMixin, SegmentOverError
from autotune.worker.patches import TuneMixin
from autotune.worker.recorder import Recorder
from tests.run.trials import spec

MODEL = str(Path(__file__).parents[1] / "models" / "tiny-detect.yaml")


class Seen(DetectionTrainer):
    """Notes what trains it and what validates it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.trained: list[tuple[int, int, list[str]]] = []
        self.validated: list[tuple[int, ...]] = []
        super().__init__(*args, **kwargs)
        self.add_callback("on_train_start", lambda t: t.ema.ema.register_forward_pre_hook(self.note))

    def note(self, model: torch.nn.Module, inputs: tuple[Any]) -> None:
        self.validated.append(tuple(inputs[0].shape))

    def preprocess_batch(self, batch: dict[str, Any]) -> Any:
        ready = super().preprocess_batch(batch)
        self.trained.append((max(ready["img"].shape[-2:]), len(ready["cls"]), [Path(f).name for f in ready["im_file"]]))
        return ready


def certified(folder: Path, data: Path, **args: Any) -> tuple[Recorder, Any]:
    """A certificate in this process."""
    stock = args.pop("stock", Seen)
    given = {"model": MODEL, "imgsz": 64, "batch": 4, "nbs": 8, "save_dir": str(folder / "yolo"), **args}
    asked = replace(spec(data, **given), role="probe", probe="certificate")
    folder.mkdir(parents=True, exist_ok=True)
    recorder = Recorder(asked, TrialDir(folder))
    attributes = {"patches": {"torch_threads": 1}, "recorder": recorder}
    trainer: Any = type("T", (SegmentMixin, TuneMixin, stock), attributes)(overrides=dict(asked.train_args))
    certify(trainer, recorder, SegmentOverError)
    try:
        with pytest.raises(SegmentOverError):
            trainer.train()
    finally:
        recorder.write()
        trainer.train_loader.close()
        trainer.test_loader.close()
        torch.use_deterministic_algorithms(False)
    return recorder, trainer


CROWDED = ("000003", "000008", "000011", "000013")
"""Images that are given 60 more objects each."""


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data.yaml of 16 images, 4 of them crowded."""
    data = demo_dataset(tmp_path_factory.mktemp("streets"), n_train=16, n_val=8)
    for name in CROWDED:
        (label,) = data.parent.rglob(f"train/{name}.txt")
        people = (f"1 {0.06 + 0.1 * (i % 10):.2f} {0.1 + 0.15 * (i // 10):.2f} 0.08 0.12" for i in range(60))
        label.write_text("\n".join([label.read_text().strip(), *people]) + "\n")
    return data


@pytest.fixture(scope="module")
def worst(tmp_path_factory: pytest.TempPathFactory, streets: Path) -> tuple[Recorder, Any]:
    return certified(tmp_path_factory.mktemp("worst"), streets, multi_scale=0.5)


def test_the_crowded_batch_is_of_the_most_crowded_images(worst: tuple[Recorder, Any]) -> None:
    recorder, trainer = worst
    (_, _, first), (_, n_objects, names) = trainer.trained[0], trainer.trained[-1]
    assert {Path(name).stem for name in names} == set(CROWDED) != {Path(name).stem for name in first}
    found = recorder.certificate
    assert found["n_objects"] == n_objects
    assert found["n_objects_ordinary"] == max(n for _, n, _ in trainer.trained[:-2])
    # A mosaic shows about an image's worth of four: all of these four have 60 objects and more.
    assert n_objects > max(found["n_objects_ordinary"], 4 * 60)
    assert 60 < found["n_objects_of_one"] < n_objects


def test_it_has_the_largest_size_and_ends_with_an_optimizer_step(worst: tuple[Recorder, Any]) -> None:
    recorder, trainer = worst
    sides = [side for side, _, _ in trainer.trained]
    # The draws that preprocess_batch can make: from imgsz * 0.5 to imgsz * 1.5, in whole strides of 32.
    assert sides == [*sides[:-2], 96, 96]
    assert set(sides) <= {32, 64, 96}
    assert recorder.certificate["imgsz"] == 96
    # nbs 8 is two batches a step: two ordinary ones, then two crowded ones.
    assert len(sides) == 4
    assert recorder.certificate["n_optimizer_steps"] == trainer.ema.updates == 2
    assert any(trainer.optimizer.state.values())


def test_twice_the_batch_is_validated_with_the_ema(worst: tuple[Recorder, Any]) -> None:
    recorder, trainer = worst
    # The demo set has 8 validation images, all of them in one batch of twice 4.
    assert [shape[0] for shape in trainer.validated if shape[0] > 2] == [8]
    assert (recorder.certificate["n_val_images"], recorder.certificate["val_imgsz"]) == (8, 96), (
        "rect pads by half a stride"
    )
    assert trainer.validator.seen == 8
    assert trainer.validator.metrics.keys[0] == "metrics/precision(B)", "through NMS and metrics"


def test_each_part_adds_to_the_peak(worst: tuple[Recorder, Any]) -> None:
    found, peak = worst[0].certificate, worst[0].peak_mem_bytes
    assert 0 < found["steps_bytes"] <= found["crowded_bytes"] <= peak


def test_without_multi_scale_it_is_imgsz(tmp_path: Path, tiny: Path) -> None:
    recorder, _ = certified(tmp_path, tiny, nbs=4)
    assert recorder.certificate["imgsz"] == 64


def test_images_without_objects_are_as_crowded_as_any(tmp_path: Path) -> None:
    data = demo_dataset(tmp_path, task="classify", n_train=8, n_val=6)
    model = {"task": "classify", "model": "yolo11n-cls.yaml", "stock": ClassificationTrainer}
    found = certified(tmp_path / "t", data, **model)[0].certificate
    assert (found["n_images"], found["imgsz"], found["n_optimizer_steps"]) == (4, 64, 2)
    assert 1 < found["n_val_images"] <= 8
    assert "n_objects" not in found


class Dataset:
    """What most_crowded looks at; the images of a batch have one shape."""

    rect = False
    transforms = None

    def __init__(self, counts: list[int]) -> None:
        self.labels = [{"cls": [0] * n} for n in counts]
        self.batch = [0, 0, 1, 1]
        self.batch_shapes = [(64, 32), (64, 64)]

    def __len__(self) -> int:
        return len(self.labels)


def test_the_most_crowded_images() -> None:
    dataset = Dataset([5, 9, 2, 7])
    assert most_crowded(dataset, 2) == [1, 3]
    assert most_crowded(dataset, 8) == [1, 3, 0, 2], "a batch larger than the dataset"
    dataset.rect = True
    assert most_crowded(dataset, 2) == [3, 2], "the batch with the largest images"
    assert most_crowded(object(), 2) is None, "classification"
    assert crowded_batch(object(), 2) is None


def run(data: Path, folder: Path, **fields: Any) -> TrialResult:
    args = fields.pop("args", {})
    asked = replace(spec(data, model=MODEL, **args), role="probe", probe="certificate", **fields)
    return run_trial(asked, TrialDir(folder), started_s=0.0)


@pytest.mark.slow
def test_two_ranks_end_at_the_same_step(tiny: Path, tmp_path: Path) -> None:
    result = run(tiny, tmp_path / "t", n_ranks=2, args={"nbs": 8, "multi_scale": 0.5})
    assert result.outcome is Outcome.OK, (result.error, result.log_tail)
    assert result.effective["world_size"] == 2
    assert len(result.peak_mem_bytes) == 2
    assert (result.certificate["n_images"], result.certificate["imgsz"]) == (4, 96)
    assert result.certificate["n_val_images"] >= 1


@pytest.mark.slow
def test_a_cached_job_with_a_worker_and_mixup(tiny: Path, tmp_path: Path) -> None:
    result = run(tiny, tmp_path / "t", args={"workers": 1, "cache": "ram", "mixup": 0.5})
    assert result.outcome is Outcome.OK, (result.error, result.log_tail)
    assert result.certificate["n_objects"] > 0


@pytest.mark.slow
def test_rotated_boxes_are_validated_in_batches_of_the_same_size(tmp_path: Path) -> None:
    data = demo_dataset(tmp_path, task="obb", n_train=16, n_val=12)
    asked = replace(spec(data, task="obb", model="yolo11n-obb.yaml", batch=4, rect=True), role="probe")
    result = run_trial(replace(asked, probe="certificate"), TrialDir(tmp_path / "t"), started_s=0.0)
    assert result.outcome is Outcome.OK, (result.error, result.log_tail)
    assert result.certificate["n_val_images"] == 4, "as Ultralytics has it for this task"
    assert result.certificate["n_objects"] > 0
