"""`autotune train` tells at its end whether the receipt's promise was kept. Real training of the tiny model."""

from __future__ import annotations

import csv
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.contract import TrialDir
from autotune.report.promises import all_promises
from autotune.report.receipt import Promise
from tests.receipts import best_in, receipt_for

ARGS = ["epochs=4", "close_mosaic=1", "plots=False"]


@pytest.fixture
def best(tmp_path: Path, tiny: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    promise = Promise(
        epochs=4,
        mosaic_epoch_s=100.0,
        closed_epoch_s=90.0,
        val_s=10.0,
        save_s=1.0,
        epoch_end_s=1.0,
        half_width_frac=0.05,
    )
    return best_in(tmp_path / "run", receipt_for(tiny, promise=promise))


def train(best: Path, *args: str) -> str:
    argv = [sys.executable, "-m", "autotune", "train", str(best), *ARGS, f"project={best.parents[1] / 'p'}", *args]
    done = subprocess.run(argv, cwd=best.parents[1], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.slow
def test_full_trainings_are_held_against_the_promise(best: Path) -> None:
    said = train(best)
    assert said.startswith("promise not kept: 112 s an epoch promised (+-5 %), "), said
    assert said.endswith("shorter than promised")
    lines = all_promises(best.parent / "promises.jsonl")
    assert [k.sentence for k in lines] == [said]
    # Ultralytics' own clock, which starts an epoch where the one before ended, too.
    with next((best.parents[1] / "p").rglob("results.csv")).open() as f:
        ends = [float(row["time"]) for row in csv.DictReader(f)]
    theirs = [b - a for a, b in itertools.pairwise(ends)]
    assert lines[0].n_epochs == 3
    assert lines[0].real_s is not None
    assert 0.5 * min(theirs) <= lines[0].real_s <= 2 * max(theirs)
    assert sorted(p.name for p in best.iterdir()) == ["receipt.json", "winner.json"]
    assert not TrialDir(best).epochs.exists()

    said = train(best, "imgsz=32", "val=False")
    assert said.startswith("promise not comparable, imgsz=32: 100 s for the steps of an epoch promised")
    assert [k.status for k in all_promises(best.parent / "promises.jsonl")] == ["not_kept", "not_comparable"]
