"""results.csv as Ultralytics wrote it, as it is while it is written, and what it says of a training's speed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autotune.contract import Winner
from autotune.report.epochs import (
    Row,
    Training,
    against,
    drift,
    epoch_s,
    epochs_of,
    left_s,
    read_rows,
    read_training,
    same_job,
    stale,
    summary,
)
from autotune.report.promises import Kept
from autotune.report.receipt import Promise
from tests.receipts import receipt_for

REAL = Path(__file__).parents[1] / "goldens" / "trainings" / "three_epochs"
PROMISE = Promise(
    epochs=100, mosaic_epoch_s=58.0, closed_epoch_s=50.0, val_s=1.0, save_s=0.5, epoch_end_s=0.5, half_width_frac=0.05
)


def of(seconds: list[float], **args: object) -> Training:
    """Synthetic: epochs of these lengths."""
    ends = [sum(seconds[: i + 1]) for i in range(len(seconds))]
    rows = tuple(Row(i + 1, end) for i, end in enumerate(ends))
    return Training(
        folder=Path("synthetic"), args={"epochs": 100, "close_mosaic": 10, **args}, rows=rows, ended_at=1000.0
    )


def test_a_real_training() -> None:
    found = read_training(REAL)
    assert found.rows == (Row(1, 18.1742), Row(2, 29.6534), Row(3, 42.6013))
    assert (found.n_epochs, found.n_done) == (3, 3)
    epochs = epochs_of(found)
    assert [e.closed for e in epochs] == [False, False, True]
    assert [e.seconds for e in epochs] == pytest.approx([18.1742, 11.4792, 12.9479])
    assert epoch_s(found) == pytest.approx(12.2136, abs=1e-3)
    assert summary(found) == "epoch 3 of 3   12 s an epoch"


@pytest.mark.parametrize("cut", [0, 5, 20, 200, 240, 300, 330, 400, 420, 500])
def test_a_file_that_is_being_written_shows_whole_rows_only(cut: int, tmp_path: Path) -> None:
    text = (REAL / "results.csv").read_text()
    path = tmp_path / "results.csv"
    path.write_text(text[:cut])
    assert read_rows(path) == read_rows(REAL / "results.csv")[: max(0, text[:cut].count("\n") - 1)]


def test_padded_names_as_older_releases_wrote_them(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("                  epoch,                   time,         train/box_loss\n")
    assert read_rows(path) == ()
    with path.open("a") as f:
        f.write("                      1,                61.5,                3.1\n")
        f.write("                      2,               120.0,                2.9\n")
    assert read_rows(path) == (Row(1, 61.5), Row(2, 120.0))


@pytest.mark.parametrize("text", ["", "\n", "a,b\n1,2\n", "epoch,time\nx,y\n1\n", "\x00\x01\n"])
def test_what_is_no_results_csv_says_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text(text)
    (tmp_path / "args.yaml").write_text("- not\n- a mapping\n")
    found = read_training(tmp_path)
    assert (found.rows, found.args) == ((), {})
    (tmp_path / "args.yaml").write_text("{broken")
    assert read_training(tmp_path).args == {}


def test_resumed_runs_start_their_clock_again() -> None:
    rows = (Row(1, 70.0), Row(2, 130.0), Row(3, 66.0), Row(4, 127.0), Row(4, 60.0), Row(5, 122.0))
    found = Training(folder=Path("synthetic"), args={"epochs": 10}, rows=rows)
    assert [e.seconds for e in epochs_of(found)] == [70.0, 60.0, 61.0, 62.0], "not the first ones after a resume"
    assert found.n_done == 5
    assert left_s(found) == pytest.approx(5 * 61.0)


def test_time_left_and_a_training_that_stands_still() -> None:
    found = of([70.0, 60.0, 61.0, 60.0])
    assert left_s(found) == pytest.approx(96 * 60.0)
    assert summary(found) == "epoch 4 of 100   60 s an epoch   96.0 min left"
    assert stale(found, 1000.0 + 170.0) is None
    assert "no epoch has ended for" in str(stale(found, 1000.0 + 200.0))
    done = of([70.0, 60.0], epochs=2)
    assert stale(done, 1e6) is None
    assert stale(Training(folder=Path("synthetic")), 1e6) is None


def test_epochs_that_become_longer() -> None:
    steady = [70.0, 60.0, 60.0, 60.0]
    assert drift(of([*steady, *[60.0, 62.0, 59.0] * 3])) is None
    assert drift(of([*steady, 80.0])) is None, "too few to tell"
    found = drift(of([*steady, *[60.0] * 4, *[75.0] * 5]))
    assert found is not None
    assert found[0] == pytest.approx(1.25)
    assert found[1] == "epochs take 25 % longer than before: 60 s, now 75 s (medians of 5)"
    closed = drift(of([*steady, *[60.0] * 4, *[30.0] * 2], epochs=10, close_mosaic=2))
    assert closed is None, "those without mosaic are of another kind"


def test_the_promise_of_a_receipt() -> None:
    receipt = receipt_for("/data/shapes.yaml", promise=PROMISE)
    winner = Winner(task="detect", train_args=dict(receipt.baseline.train_args), params={})
    args = {**winner.train_args, "warmup_epochs": 1.0}
    kept = against(of([70.0, 60.0, 61.0], **args), winner, receipt)
    assert isinstance(kept, Kept)
    assert kept.status == "kept"
    slow = against(of([90.0, 80.0, 81.0], **args), winner, receipt)
    assert isinstance(slow, Kept)
    assert slow.status == "not_kept"
    assert "34% longer than promised" in slow.sentence
    other = against(of([70.0, 60.0, 61.0], **{**args, "imgsz": 32, "data": "/else/other.yaml"}), winner, receipt)
    assert isinstance(other, Kept)
    assert other.status == "not_comparable"
    assert "imgsz=32" in other.sentence
    assert "data=other.yaml" in other.sentence
    moved = against(of([70.0, 60.0, 61.0], **{**args, "data": "/else/shapes.yaml"}), winner, receipt)
    assert isinstance(moved, Kept)
    assert moved.status == "kept", "the same dataset in another place"
    assert "val=False" in str(against(of([70.0, 60.0], **{**args, "val": False}), winner, receipt))
    steps = receipt_for("/data/shapes.yaml", promise=replace(PROMISE, val_s=None))
    assert "steps alone" in str(against(of([70.0, 60.0], **args), winner, steps))
    assert "no promise" in str(against(of([70.0, 60.0], **args), winner, receipt_for("/data/shapes.yaml")))


def test_which_training_is_the_winners() -> None:
    receipt = receipt_for("/data/shapes.yaml")
    winner = Winner(task="detect", train_args=dict(receipt.baseline.train_args), params={})
    args = {**winner.train_args, "data": "/mnt/shapes.yaml"}
    assert same_job(winner, args)
    assert not same_job(winner, {**args, "batch": 4})
    assert not same_job(winner, {})
