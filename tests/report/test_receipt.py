"""receipt.json: does a copied best/ hold all that a recheck and a full training need?"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from autotune.contract import EpochEnd, RunDir, Summary, TrialResult, read_json, write_json
from autotune.errors import FormatError, InputError
from autotune.report import export as exporting
from autotune.report.export import export
from autotune.report.receipt import Receipt, read_receipt
from tests.report.conftest import default_results, make_run, result_of

EPOCHS, CLOSED, IMAGES = 100, 10, 1280


@pytest.fixture(autouse=True)
def _no_yolo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check by a process of Ultralytics is tested in test_export.py."""
    monkeypatch.setattr(exporting, "check_with_yolo", lambda files: None)


def with_job(r: TrialResult) -> TrialResult:
    """With the terms of a job of 100 epochs, 10 of them without mosaic, as the search writes them."""
    assert r.images_per_s
    epoch_s = IMAGES / r.images_per_s
    terms = {"start_s": 8.0, "mosaic_epochs_s": 90 * epoch_s, "closed_epochs_s": 10 * epoch_s, "val_s": None}
    job = {"epochs": EPOCHS, "n_closed_epochs": CLOSED, "n_images": IMAGES}
    return replace(r, job=job, job_terms=terms, job_s=8.0 + 100 * epoch_s)


def run_with_jobs(folder: Path, **more: Any) -> RunDir:
    run = make_run(folder, results=[with_job(r) for r in default_results(8, {})], **more)
    for _, directory in run.numbered():  # finalists are made by make_run itself
        result = read_json(directory.result, TrialResult)
        write_json(directory.result, with_job(result))
    return run


def receipt_in(run: RunDir, tmp_path: Path) -> Receipt:
    """Of best/ alone, copied elsewhere; the run is gone."""
    copied = tmp_path / "elsewhere"
    shutil.copytree(export(run), copied)
    shutil.rmtree(run.path)
    return read_receipt(copied)


def test_a_copied_best_folder_suffices(tmp_path: Path) -> None:
    found = receipt_in(run_with_jobs(tmp_path / "run"), tmp_path)
    assert found.confirmed
    assert found.baseline.train_args["data"] == "/home/me/demo/data.yaml"
    assert found.baseline.train_args["imgsz"] == 128
    assert found.baseline.train_args["optimizer"] == "MuSGD"
    assert found.baseline.n_ranks == 1
    assert len(found.baseline_runs.images_per_s) == len(found.winner_runs.images_per_s) == 3
    assert found.winner_runs.took_s == pytest.approx(18.0)
    assert found.ratio is not None
    assert found.ratio.ci95_lo < found.ratio.speedup < found.ratio.ci95_hi
    assert (found.ratio.n_blocks, found.ratio.sigma_run_frac, found.ratio.df) == (3, 0.033, 4)
    assert found.machine is not None
    assert found.machine.cpu.startswith("Example")
    assert found.segment.measure_s > 0


def test_promise_without_a_measured_epoch_end(tmp_path: Path) -> None:
    run = run_with_jobs(tmp_path / "run")
    numbers = read_json(run.summary, Summary).verdict.finalists[1].numbers
    epochs = [IMAGES / (read_json(run.trial(n).result, TrialResult).images_per_s or 0) for n in numbers]
    promise = receipt_in(run, tmp_path).promise
    assert promise is not None
    assert promise.mosaic_epoch_s == pytest.approx(fmean(epochs))
    assert promise.missing == ("closed_epoch_s", "val_s", "save_s", "epoch_end_s")
    assert promise.epoch_s(closed=False, whole=True) is None
    assert promise.epoch_s(closed=False, whole=False) == promise.mosaic_epoch_s
    assert promise.epoch_s(closed=True, whole=False) is None
    # Student t of 4 degrees of freedom, one run more than the three that were measured.
    assert promise.half_width_frac == pytest.approx(2.776 * 0.033 * (4 / 3) ** 0.5, rel=1e-3)


def test_promise_with_a_measured_epoch_end(tmp_path: Path) -> None:
    run = run_with_jobs(tmp_path / "run")
    best = read_json(run.trial(read_json(run.summary, Summary).best_number or 0).result, TrialResult)
    probe = result_of(20, role="probe", probe="epoch_end", params=best.params, images_per_s=128.0)
    ends = EpochEnd(val_s=4.0, save_s=0.5, rest_s=0.25, reset_s=3.0, final_s=9.0)
    run.trial(20).path.mkdir()
    write_json(run.trial(20).result, replace(probe, epoch_end=ends))
    promise = receipt_in(run, tmp_path).promise
    assert promise is not None
    assert promise.missing == ()
    assert promise.closed_epoch_s == pytest.approx(IMAGES / 128.0), "the probe's rate is the one without mosaic"
    assert promise.mosaic_epoch_s is not None
    assert promise.epoch_s(closed=False, whole=True) == pytest.approx(promise.mosaic_epoch_s + 4.75)
    assert promise.epoch_s(closed=True, whole=True) == pytest.approx(promise.closed_epoch_s + 4.75)


def test_promise_of_a_job_that_does_not_validate(tmp_path: Path) -> None:
    args = {"model": "yolo11n.yaml", "data": "/d.yaml", "imgsz": 128, "epochs": 100, "val": False, "save": False}
    run = run_with_jobs(tmp_path / "run", info={"train_args": args})
    promise = receipt_in(run, tmp_path).promise
    assert promise is not None
    assert (promise.val_s, promise.save_s) == (0.0, 0.0)
    assert promise.missing == ("closed_epoch_s", "epoch_end_s")


def test_unconfirmed_has_no_ratio_and_no_interval(tmp_path: Path) -> None:
    found = receipt_in(run_with_jobs(tmp_path / "run", finalists=False), tmp_path)
    assert (found.confirmed, found.ratio) == (False, None)
    assert found.promise is not None
    assert found.promise.half_width_frac is None


def test_receipts_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no receipt\.json"):
        read_receipt(tmp_path)
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps({"format": 1, "run": "old", "started": "", "files": []}))
    with pytest.raises(InputError, match="older autotune"):
        read_receipt(tmp_path)
    for text in ("{", "[]", json.dumps({"format": 99}), json.dumps({"format": 1, "baseline": {}})):
        path.write_text(text)
        with pytest.raises(FormatError):
            read_receipt(tmp_path)
