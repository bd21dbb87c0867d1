"""Does a segment on real training keep the user's job as it is, over epochs and with a small dataset?"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import fmean

import pytest
from ultralytics.models.yolo.detect import DetectionTrainer

from autotune.question import TRIAL_ARGS
from tests.worker.trainers import CountingTrainer, train


def test_epochs_roll_over_and_the_pipeline_stays(tiny: Path, tmp_path: Path) -> None:
    # Four steps an epoch: the segment crosses epoch 2, where the job closes its mosaic, and epoch 12, where it ends.
    recorder, trainer = train(tmp_path, tiny, 56, batch=16, nbs=16, epochs=12, close_mosaic=10)
    steps = recorder.segment.steps
    assert recorder.effective["epoch"] >= 13
    assert recorder.effective["mosaic_open"] is True
    assert recorder.job["n_closed_epochs"] == 10, "the job still has them"
    assert recorder.job["epochs"] == 12
    assert trainer.args.epochs == 12, "the learning rate's schedule is the job's"
    # The end of an epoch is in the step after it: the columns leave no gap and no time is counted twice.
    assert sum(steps.step_s[1:]) == pytest.approx(steps.end_s[-1] - steps.end_s[0], rel=1e-3)


def test_a_job_that_never_opens_its_mosaic_is_measured_without(tiny: Path, tmp_path: Path) -> None:
    recorder, _ = train(tmp_path, tiny, 6, batch=16, epochs=8, close_mosaic=10)
    assert recorder.effective["mosaic_open"] is False
    assert recorder.job["n_closed_epochs"] == 8


def test_the_end_of_an_epoch_is_rest_and_not_the_loaders_fault(tiny: Path, tmp_path: Path) -> None:
    class SlowEnd(DetectionTrainer):
        def save_metrics(self, *args: object, **kwargs: object) -> None:
            time.sleep(0.2)

    recorder, _ = train(tmp_path, tiny, 16, SlowEnd, batch=16, nbs=16)
    steps = recorder.segment.steps
    firsts = [i for i in range(4, len(steps.step_s)) if i % 4 == 0]
    assert min(steps.step_s[i] for i in firsts) > 0.2
    assert min(steps.step_s[i] - steps.wait_s[i] - steps.forward_s[i] - steps.backward_s[i] for i in firsts) > 0.2


def test_accumulate_does_not_ramp(tiny: Path, tmp_path: Path) -> None:
    job = {"warmup_epochs": 3.0, "nbs": 16}
    trial = {k: v for k, v in TRIAL_ARGS.items() if k not in ("save_dir", "exist_ok")}
    ramped, _ = train(tmp_path / "ramped", tiny, 14, **job)
    ours, _ = train(tmp_path / "ours", tiny, 14, **{**job, **trial})
    optimizer = [[s > 0 for s in r.segment.steps.optimizer_s[:12]] for r in (ramped, ours)]
    assert optimizer[1] == [False, False, False, True] * 3
    assert sum(optimizer[0]) > 6, "the first steps of the user's own training pay one each"


def test_trials_keep_what_decides_the_data_pipeline() -> None:
    assert not {"epochs", "close_mosaic", "fraction", "mosaic", "nbs", "optimizer"} & set(TRIAL_ARGS)


def test_the_first_epoch_of_a_small_set_is_warm_up(tiny: Path, tmp_path: Path) -> None:
    # 64 images, batch 8: the mosaic buffer holds them all after one epoch of eight steps.
    recorder, trainer = train(tmp_path, tiny, 8, CountingTrainer, batch=8, nbs=8, wait_steady=True)
    assert trainer.decodes[:8] == [8] * 8
    assert fmean(trainer.decodes[8:]) <= 0.1 * 8, "decoding all but vanishes after the first epoch"
    assert recorder.segment.measured_from is not None
    assert recorder.segment.measured_from >= 8


def test_workers_fill_their_buffers_slower(tiny: Path, tmp_path: Path) -> None:
    # Each of two workers gets a random half of an epoch: after one epoch, half of what it is asked for is new to it.
    recorder, trainer = train(
        tmp_path, tiny, 24, CountingTrainer, batch=8, nbs=8, wait_steady=True, patches={"workers": 2}
    )
    start = recorder.segment.measured_from
    assert recorder.segment.buffer_steps == 37
    assert start is not None
    assert start >= 37
    assert fmean(trainer.decodes[8:16]) > 0.2 * 8, "one epoch would not have been enough"
    assert fmean(trainer.decodes[start : start + 24]) <= 0.1 * 8
